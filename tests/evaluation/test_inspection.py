"""What an inspection says, against closed forms: linear ODEs, straight and planar trajectories, recorded questions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.guided import classes
from helpers.guided import scaled as guided_everywhere
from helpers.recording import Recorder
from helpers.tables import epd_table, full_table
from helpers.toy_models import toy_mixture
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import epd
from epd.denoisers.noise import unit_noise
from epd.denoisers.protocol import Path as Frame
from epd.evaluation.course import places
from epd.evaluation.geometry import Basis, angles, variance_explained
from epd.evaluation.inspection import Inspection, inspect
from epd.evaluation.inspection_figures import figures_of
from epd.evaluation.inspection_numbers import blocks_of
from epd.evaluation.inspection_tensorboard import write_inspection
from epd.evaluation.inspection_text import percent, verdict
from epd.evaluation.plots import Traced
from epd.solvers.exact import converged
from epd.solvers.solve import trajectory
from epd.solvers.walk import plan

VE, FLOW = [20.0, 6.0, 2.0, 0.7, 0.1], [1.0, 0.8, 0.5, 0.2, 0.02]
STD = 0.6
EXACT = {"tolerance": 1e-10, "dtype": torch.float64}


def gaussian(path: Frame) -> epd.GaussianMixture:
    """One mode at 0: the ODE is linear, x(sigma) is proportional to the marginal's standard deviation."""
    high = 20.0 if path == "ve" else 1.0
    return epd.GaussianMixture(torch.zeros(1, 1, 2, 2), STD, path=path, sigma_min=0.01, sigma_max=high)


def spread(path: Frame, sigmas: Tensor) -> Tensor:
    alpha = 1 - sigmas if path == "flow" else torch.ones_like(sigmas)
    return (alpha**2 * STD**2 + sigmas**2).sqrt()


def euler_factors(path: Frame, sigmas: Tensor) -> Tensor:
    """What one Euler step multiplies a state by: 1 + (sigma' - sigma) d(log spread)/dsigma."""
    here = sigmas[:-1]
    alpha, change = (1 - here, -1.0) if path == "flow" else (torch.ones_like(here), 0.0)
    return 1 + sigmas.diff() * (alpha * change * STD**2 + here) / (alpha**2 * STD**2 + here**2)


def straight() -> epd.Model:
    """One point: every trajectory is a straight line, which Euler follows exactly."""
    return epd.own_model(lambda x, sigma: torch.full_like(x, 0.5), (1, 2, 2), 0.1, 20.0, name="point")


def planar() -> epd.Model:
    """A Gaussian of two variances: each trajectory bends within the plane of its two parts."""
    variances = torch.tensor([1.0, 1.0, 1.0, 0.01, 0.01, 0.01], dtype=torch.float64)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return (variances / (variances + sigma[:, None].double() ** 2)).to(x.dtype) * x

    return epd.own_model(denoise, (6,), 0.1, 20.0, name="planar")


@pytest.mark.parametrize(("path", "levels"), [("ve", VE), ("flow", FLOW)])
def test_errors_of_a_linear_ode_are_those_of_its_closed_form(path: Frame, levels: list[float]) -> None:
    sigmas = torch.tensor(levels, dtype=torch.float64)
    found = inspect(gaussian(path), Traced("Euler", epd.rules.euler(), sigmas), 5, 3, 7, (), **EXACT)
    noise = unit_noise(range(7, 12), (1, 2, 2), torch.float64)
    size = noise.flatten(1).square().mean(1).sqrt() * sigmas[0]
    factors = euler_factors(path, sigmas)
    exact = spread(path, sigmas) / spread(path, sigmas[:1])
    reached = torch.cat([torch.ones(1, dtype=torch.float64), factors.cumprod(0)])
    torch.testing.assert_close(found.error, (reached - exact).abs()[:, None] * size, rtol=1e-6, atol=1e-8)
    signed = exact[:-1] * factors - exact[1:]
    torch.testing.assert_close(found.local, signed.abs()[:, None] * size, rtol=1e-6, atol=1e-8)
    # Every single step's error, carried on by the steps behind it, adds up to the error at the end.
    carried = sum(signed[n] * factors[n + 1 :].prod() for n in range(len(factors)))
    torch.testing.assert_close(found.error[-1], abs(carried) * size, rtol=1e-6, atol=1e-8)
    assert found.differences.square().mean().sqrt() == pytest.approx(found.metrics()["rmse"])
    assert found.metrics()["median"] == pytest.approx(float(found.error[-1].median()))
    # All slopes of one sample are parallel to it; on a flow they turn round where its spread is smallest.
    assert float(torch.minimum(found.curvature, 180 - found.curvature).max()) < 1e-5
    assert bool((found.curvature > 90).any()) == (path == "flow")
    assert float(found.explained.min()) == pytest.approx(1)


def test_on_straight_trajectories_everything_points_the_same_way() -> None:
    sigmas = torch.tensor(VE, dtype=torch.float64)
    found = inspect(straight(), Traced("Euler", epd.rules.euler(), sigmas), 4, shown=(), **EXACT)
    assert found.directions == ("anchor", "update") and found.angles.shape == (4, 2, 4)
    assert float(found.angles.abs().max()) < 1e-4 and float(found.error.max()) < 1e-7
    torch.testing.assert_close(found.explained, torch.ones(4, 3, dtype=torch.float64))


def test_a_planar_trajectory_has_two_components() -> None:
    found = inspect(planar(), Traced("Heun", epd.rules.heun(), torch.tensor(VE, dtype=torch.float64)), 4, **EXACT)
    assert float(found.explained[:, 0].max()) < 1 - 1e-6 and float(found.explained[:, 1].min()) > 1 - 1e-12
    assert "100 % along 2, 100 % along 3" in verdict(found)
    shown = found.shown[0]
    assert shown.pictures is None and float(shown.learned[:, 2].abs().max()) < 1e-6 < float(shown.learned[:, 1].std())


def test_geometry_of_known_shapes() -> None:
    turned = torch.tensor([[1.0, 1.0], [-1.0, 0.0], [1.0, 1e-9], [0.0, 0.0]], dtype=torch.float64)
    degrees = angles(torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(4, 2), turned)
    torch.testing.assert_close(degrees[:3], torch.tensor([45.0, 180.0, math.degrees(1e-9)], dtype=torch.float64))
    assert math.isnan(degrees[3])
    t = torch.linspace(0, 2 * math.pi, 9, dtype=torch.float64)[:-1]
    circle = torch.stack([t.cos(), t.sin(), 0 * t, 0 * t], 1)
    shares = variance_explained(torch.stack([circle, 0 * circle, t[:, None] * circle[1]], 1))
    expected = torch.tensor([[0.5, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(shares, expected)
    basis = Basis.of(circle * torch.tensor([3.0, 2.0, 1.0, 1.0]))
    projected = basis.project(circle * torch.tensor([3.0, 2.0, 1.0, 1.0]))
    torch.testing.assert_close(projected.abs(), (circle * torch.tensor([3.0, 2.0, 1.0, 1.0]))[:, :3].abs())
    assert Basis.of(circle[:2, :2]).axes.shape == (3, 2) and projected[-1, 0] > 0
    assert (percent(1.0), percent(0.5), percent(0.9993), percent(0.99999)) == ("100 %", "50.0 %", "99.93 %", "99.999 %")


CASES = {
    "EPD": epd_table(), "AFS": epd_table(True), "plugin": epd_table(order=3), "memory": full_table(),
    "one-call": full_table(1), "one-call AFS": full_table(1, True), "dense": full_table([0, 1, 1, 1], False),
    "mixed, free": full_table([2, 1, 2, 1], free=True),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_questions_are_those_of_the_walk_and_every_call_is_counted(name: str) -> None:
    table, recorder = CASES[name], Recorder(toy_mixture())
    model = epd.own_model(recorder, (1, 2, 2), 0.1, 40.0, name="toy")
    found = inspect(model, table, 2, seed=3, shown=(3,), tolerance=1e-6, dtype=torch.float64)
    assert (found.calls, found.evaluations) == (table.depth, table.nfe)
    asks = [ask for step in plan(table.rule(), table.sigmas) for ask in step]
    assert found.places == tuple(p for group in places(asks, torch.tensor(table.sigmas), table) for p in group)
    assert [(p.step, p.stage) for p in found.places] == [(a.site.step, a.site.stage) for a in asks for _ in a.sigma]
    assert [p.sigma for p in found.places] == [s for ask in asks for s in ask.sigma.tolist()]
    assert [p.told for p in found.places] == [s for ask in asks for s in ask.network_sigma.tolist()]
    named = [p.name == "anchor" for p in found.places]
    assert named == [p.sigma == table.sigmas[p.step] for p in found.places]
    # The points are projections of what the solver asks a denoiser, in order.
    asked = Recorder(toy_mixture())
    noise = unit_noise([3], (1, 2, 2), torch.float64)
    states = torch.stack([*trajectory(table.rule(), asked, noise, table.sigmas)])
    points = torch.cat([x for x, _ in asked.calls])
    shown = found.shown[0]
    pairs = (torch.cat([states[:, 0], points]), torch.cat([shown.learned, shown.points]))
    # Four dimensions onto three: distances shrink, and those along the components are kept exactly.
    distances = [torch.cdist(x.flatten(1), x.flatten(1)) for x in pairs]
    assert len(shown.points) == table.nfe and bool((distances[1] <= distances[0] + 1e-9).all())
    assert float(distances[1].max()) == pytest.approx(float(distances[0].max()), rel=1e-3)
    # A sample costs the solver twice, one slope at each sigma, and the converged trajectory.
    assert found.spent > 2 * table.nfe + table.num_steps + 1
    missing = found.angles.isnan().all(2)
    evaluated = {(p.step, p.name) for p in found.places} | ({(0, "anchor")} if table.moves_first_call else set())
    for n in range(table.num_steps):
        for k, direction in enumerate(found.directions):
            assert bool(missing[n, k]) == (direction != "update" and (n, direction) not in evaluated)


def test_single_steps_remember_slopes_of_the_converged_trajectory() -> None:
    """Adams-Bashforth on a slope that is linear in sigma is exact from its second step, begun anywhere on the curve."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x - (sigma * (1 + 2 * sigma))[:, None] * torch.ones_like(x)  # dx/dsigma = 1 + 2 sigma

    model = epd.own_model(denoise, (3,), 0.1, 4.0, name="parabola")
    sigmas = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.1], dtype=torch.float64)
    found = inspect(model, Traced("AB2", epd.rules.ipndm(2, weights="computed"), sigmas), 2, shown=(), **EXACT)
    assert float(found.local[0].min()) == pytest.approx(1.0) and float(found.local[1:].max()) < 1e-6
    assert float(found.error[-1].max()) == pytest.approx(1.0) and found.worst == 0


def test_batches_and_seeds_change_nothing() -> None:
    table = epd_table()
    whole, parts = (inspect(toy_mixture(), table, 4, size, 0, (1,), **EXACT) for size in (4, 3))
    torch.testing.assert_close(whole.error, parts.error, rtol=1e-6, atol=1e-8)
    assert whole.places == parts.places
    with pytest.raises(ValueError, match="above 0, end there"):
        inspect(toy_mixture(), Traced("Euler", epd.rules.euler(), torch.tensor([20.0, 1.0, 0.0])), 2)
    with pytest.raises(ValueError, match="samples = 1"):
        inspect(toy_mixture(), table, 1)


@pytest.fixture(scope="module")
def found() -> Inspection:
    return inspect(toy_mixture(), full_table(1, True, past=1), 8, shown=(5,), tolerance=1e-5, name="ours")


def test_everything_documented_is_in_the_event_file(found: Inspection, tmp_path: Path) -> None:
    earlier, other = (tmp_path / f"events.out.tfevents.1.here{end}" for end in (".inspection", ""))
    for path in (earlier, other):
        path.touch()
    write_inspection(found, tmp_path, tmp_path / "png")
    assert not earlier.exists() and other.exists()
    events = EventAccumulator(str(tmp_path), {"images": 0, "scalars": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    steps = found.num_steps
    for kind, first in (("error", 0), ("local_error", 1)):
        for key in ("mean", "median", "q05", "q95"):
            assert [e.step for e in events.Scalars(f"{kind}/{key}")] == list(range(first, steps + 1))
    assert [e.value for e in events.Scalars("error/mean")] == pytest.approx(found.error.mean(1).tolist())
    assert [e.value for e in events.Scalars("angle/point_2")] == pytest.approx(found.mean_angles("point 2").tolist())
    angle_tags = {f"angle/{name}" for name in ("anchor", "point_1", "point_2", "update")}
    assert angle_tags | {"curvature/mean", "variance_explained/components"} <= set(tags["scalars"])
    assert [e.step for e in events.Scalars("variance_explained/components")] == [1, 2, 3]
    assert set(tags["histograms"]) == {"end/element_errors", "end/sample_errors"}
    assert events.Histograms("end/element_errors")[0].histogram_value.num == 8 * 4
    pictures = {"states/seed_5", "denoised/seed_5"}
    names = {"error", "directions", "shape", "end", "table", "projection_seed_5", "trajectory_seed_5"}
    assert set(tags["images"]) == pictures | {f"figures/{name}" for name in names}
    for tag in pictures:
        images = events.Images(tag)
        assert [e.step for e in images] == list(range(steps + 1))
        assert {(e.width, e.height) for e in images} == {(2 * 64 + 12, 64 + 8)}
    assert {f"{name}.png" for name in names} == {path.name for path in (tmp_path / "png").iterdir()}
    tensors = {tag: events.Tensors(f"{tag}/text_summary")[0].tensor_proto for tag in ("verdict", "table")}
    texts = {tag: tensor.string_val[0].decode() for tag, tensor in tensors.items()}
    assert "worst step" in texts["verdict"] and found.table is not None and found.table.digest in texts["table"]
    assert [e.value for e in events.Scalars("final/rmse")] == pytest.approx([found.metrics()["rmse"]])
    plugin = set(events.PluginTagToContent("hparams"))
    assert plugin == {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"}


def test_figures_name_their_axes_and_units(found: Inspection) -> None:
    drawn = figures_of(found)
    for name in ("error", "directions", "shape", "end", "projection_seed_5"):
        for axes in drawn[name].axes:
            assert axes.get_xlabel() and axes.get_ylabel(), name
    learned = next(line for line in drawn["error"].axes[0].lines if line.get_label() == "mean")
    assert np.asarray(learned.get_ydata()).tolist() == pytest.approx(found.error[1:].mean(1).tolist())
    points = [c for c in drawn["projection_seed_5"].axes[0].collections if c.get_label() == "look-ahead point asked"]
    fan = [k for k, place in enumerate(found.places) if place.name != "anchor"]
    offsets = torch.from_numpy(np.array(points[0].get_offsets(), np.float64))
    torch.testing.assert_close(offsets, found.shown[0].points[fan, :2])


def test_a_table_that_scales_guidance_is_followed_as_it_is_solved() -> None:
    model, table = classes(), guided_everywhere(full_table())
    found = inspect(model, table, 4, shown=(1,), **EXACT)
    noise, bound = unit_noise(range(4), model.shape, torch.float64), model.for_seeds(range(4))
    end = epd.solve(table.rule(), bound, noise, table.sigmas)
    exact = converged(bound, noise, torch.tensor(table.sigmas), 1e-10, 1e-10)[-1]
    error = (end - exact).flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(found.error[-1], error, rtol=1e-6, atol=1e-9)
    plain = epd.solve(full_table().rule(), bound, noise, table.sigmas)
    assert float((plain - end).abs().max()) > 0.01  # factors that were left out would be seen


def test_heat_maps_hold_the_tables_own_numbers() -> None:
    table = full_table(2, True, free=True)
    blocks = {block.title: block for block in blocks_of(table)}
    assert list(blocks) == ["log10 sigma", "node", "weight", "sigma scale", "memory weight"]
    assert blocks["weight"].values[:, 0].tolist() == table.anchor.tolist()
    assert blocks["weight"].columns == ("anchor", "point 1", "point 2")
    assert math.isnan(blocks["sigma scale"].values[0, 0])  # analytic: the network is told nothing
    assert blocks["sigma scale"].values[1:, 0].tolist() == table.anchor_scale[1:].tolist()
    guided = guided_everywhere(table)
    factors = next(block for block in blocks_of(guided) if block.title == "guidance scale").values
    assert math.isnan(factors[0, 0]) and factors[1:, 0].tolist() == guided.anchor_guidance[1:].tolist()
    assert factors[:, 1:].tolist() == guided.guidance_scale.tolist()
    scaled = {block.title: block for block in blocks_of(epd_table())}
    assert scaled["slope scale"].values.tolist() == epd_table().slope_scale.tolist()
    assert [b.title for b in blocks_of(epd.Table([4.0, 1.0], [[0.5]], [[1.0]]))] == ["log10 sigma", "node", "weight"]
