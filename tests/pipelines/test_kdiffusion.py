"""`sample_epd` solves what `solve` solves, in k-diffusion's and in ComfyUI's shape."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.tables import FAMILIES
from torch import Tensor

import epd
from epd.denoisers.noise import unit_noise
from epd.pipelines.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from epd.pipelines.kdiffusion import sample_epd, sigmas_of
from epd.solvers.answers import batched
from epd.solvers.late import late_start
from epd.solvers.named import named_table, table_names
from epd.solvers.walk import drive, walk

MODEL = epd.GaussianMixture(torch.linspace(-2, 2, 12).double().reshape(3, 4), 0.3, labels=torch.tensor([0, 1, 1]))
SEEDS = (5, 6)
LABELS = torch.tensor([0, 1])
Recorder = Callable[..., Tensor]


def conditioned(calls: list[tuple[int, list[float]]]) -> Recorder:
    """k-diffusion's `model(x, sigma, **extra_args)`, recording rows and noise levels."""

    def model(x: Tensor, sigma: Tensor, cond: dict[str, Any], scale: float) -> Tensor:
        assert scale == 2.0
        calls.append((len(x), sigma.tolist()))
        return MODEL.bind(cond["labels"][0], scale)(x, sigma)

    return model


def extra() -> dict[str, Any]:
    return {"cond": {"labels": [LABELS]}, "scale": 2.0}


def levels(table: epd.Table) -> Tensor:
    return torch.tensor(table.sigmas)


def start(table: epd.Table) -> Tensor:
    return unit_noise(SEEDS, (4,), torch.float64) * table.sigmas[0]


@pytest.mark.parametrize("name", ["cifar10-epd-3x2", "cifar10-plugin-4x2", "sd15-rdpo-10x2"])
@pytest.mark.parametrize("parallel", [True, False])
def test_equals_solve(name: str, parallel: bool) -> None:
    table = named_table(name)
    calls: list[tuple[int, list[float]]] = []
    out = sample_epd(
        conditioned(calls), start(table), sigmas_of(table), extra(), disable=True, table=name, parallel=parallel
    )
    wanted = epd.solve(table.rule(), MODEL.bind(LABELS, 2.0), unit_noise(SEEDS, (4,), torch.float64), levels(table))
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)
    rows = [count for count, _ in calls]
    fans = [2 * len(SEEDS)] if parallel else [len(SEEDS)] * 2
    anchors: list[int] = [len(SEEDS)]
    assert rows == (fans if table.afs else anchors + fans) + (anchors + fans) * (table.num_steps - 1)


@pytest.mark.parametrize("decoded", [True, False])
def test_callback_gets_the_dictionary_once_for_every_interval(decoded: bool) -> None:
    """As in k-diffusion: `len(sigmas) - 1` times, also for the interval to 0, which costs no call."""
    table = named_table("sd15-rdpo-10x2")
    seen: list[dict[str, Any]] = []
    sigmas = sigmas_of(table) if decoded else None
    end = sample_epd(conditioned([]), start(table), sigmas, extra(), seen.append, True, table=table)
    assert [set(entry) for entry in seen] == [{"x", "i", "sigma", "sigma_hat", "denoised"}] * (10 + decoded)
    assert [entry["i"] for entry in seen] == list(range(10 + decoded))
    states = list(
        epd.trajectory(table.rule(), MODEL.bind(LABELS, 2.0), unit_noise(SEEDS, (4,), torch.float64), levels(table))
    )
    for entry, state, sigma in zip(seen, states, table.sigmas.tolist(), strict=False):
        torch.testing.assert_close(entry["x"], state, rtol=0, atol=1e-12)
        assert float(entry["sigma"]) == float(entry["sigma_hat"]) == sigma
        if entry["i"] < 10:
            expected = MODEL.bind(LABELS, 2.0)(state, torch.tensor(sigma, dtype=torch.float64))
            torch.testing.assert_close(entry["denoised"], expected, rtol=0, atol=1e-12)
    if decoded:
        assert torch.equal(seen[-1]["x"], end)
        assert torch.equal(seen[-1]["denoised"], end)


def test_a_part_of_the_sigmas_continues_exactly() -> None:
    table = named_table("sd15-rdpo-10x2")
    sigmas = sigmas_of(table)
    whole = sample_epd(conditioned([]), start(table), None, extra(), disable=True, table=table)
    half = sample_epd(conditioned([]), start(table), sigmas[:5], extra(), disable=True, table=table)
    rest = sample_epd(conditioned([]), half, sigmas[4:], extra(), disable=True, table=table)
    assert torch.equal(rest, whole)


def test_foreign_sigmas_are_refused() -> None:
    table = named_table("sd15-rdpo-10x2")
    with pytest.raises(ValueError, match="not those that the table was learned for.*sigmas_of"):
        sample_epd(conditioned([]), start(table), sigmas_of("cifar10-epd-3x2"), extra(), disable=True, table=table)
    with pytest.raises(ValueError, match="not those"):
        sample_epd(conditioned([]), start(table), sigmas_of(table)[::2], extra(), disable=True, table=table)


@pytest.mark.parametrize("kind", ["dense", "dense, no fan", "no first call"])
def test_a_step_of_no_call_reports_the_state_that_its_slope_points_to(kind: str) -> None:
    table, seen, calls = FAMILIES[kind], [], []
    out = sample_epd(conditioned(calls), start(table), sigmas_of(table), extra(), seen.append, True, table=table)
    noise, bound = unit_noise(SEEDS, (4,), torch.float64), MODEL.bind(LABELS, 2.0)
    torch.testing.assert_close(out, epd.solve(table.rule(), bound, noise, levels(table)), rtol=0, atol=1e-12)
    assert len(calls) == table.depth
    assert [entry["i"] for entry in seen] == list(range(5))
    first = table.sigmas[0]
    torch.testing.assert_close(seen[0]["denoised"], noise * first * (1 - first / (1 + first**2) ** 0.5))
    level = torch.tensor(table.sigmas[1] * table.anchor_scale[1], dtype=torch.float64)
    torch.testing.assert_close(seen[1]["denoised"], bound(seen[1]["x"], level), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["plugin", "anchor and memory", "dense", "dense, no fan", "one call", "free sums"])
def test_from_a_later_sigma_the_first_slope_stands_in(kind: str) -> None:
    table, calls, seen = FAMILIES[kind], [], []
    x = start(table) / 10
    out = sample_epd(conditioned(calls), x, sigmas_of(table)[2:], extra(), seen.append, disable=True, table=table)
    rule = late_start(table.rule(), 2, table.columns, table.consistent)
    *_, last = drive(walk(rule, x, levels(table), 2), batched(MODEL.bind(LABELS, 2.0)))
    torch.testing.assert_close(out, last.x, rtol=0, atol=1e-12)
    assert [entry["i"] for entry in seen] == [0, 1, 2]
    assert calls[0] == (2, [pytest.approx(table.sigmas[2])] * 2)  # the state alone, told its own level


class StubKSampler:
    """ComfyUI's documented KSAMPLER: it scales the noise and calls the function with its extra options."""

    def __init__(
        self,
        sampler_function: Callable[..., Tensor],
        extra_options: dict[str, Any] | None = None,
        inpaint_options: dict[str, Any] | None = None,
    ) -> None:
        self.function, self.extra_options = sampler_function, extra_options or {}

    def sample(self, model: Recorder, noise: Tensor, sigmas: Tensor, callback: Callable[..., None]) -> Tensor:
        total = len(sigmas) - 1
        return self.function(
            model,
            noise * float(sigmas[0]),
            sigmas,
            extra_args={"model_options": {"transformer_options": {}}, "seed": 3},
            callback=lambda d: callback(d["i"], d["denoised"], d["x"], total),
            disable=True,
            **self.extra_options,
        )


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> None:
    package, samplers = types.ModuleType("comfy"), types.ModuleType("comfy.samplers")
    samplers.KSAMPLER = StubKSampler  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy", package)
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)


def comfy_model(x: Tensor, sigma: Tensor, model_options: dict[str, Any], seed: int) -> Tensor:
    assert (model_options, seed) == ({"transformer_options": {}}, 3)
    return MODEL(x, sigma)


def test_comfyui_nodes_describe_themselves() -> None:
    assert set(NODE_CLASS_MAPPINGS) == set(NODE_DISPLAY_NAME_MAPPINGS) == {"EPDNamedTable", "EPDTableFile"}
    for node in NODE_CLASS_MAPPINGS.values():
        assert node.RETURN_TYPES == ("SAMPLER", "SIGMAS")
        assert callable(getattr(node(), node.FUNCTION))
    assert NODE_CLASS_MAPPINGS["EPDNamedTable"].INPUT_TYPES()["required"]["table"] == (list(table_names()),)


@pytest.mark.parametrize("kind", ["named", "dense", "dense, no fan"])
def test_comfyui_samples(comfy: None, kind: str, tmp_path: Any) -> None:  # noqa: ANN401 - a path
    table = named_table("cifar10-epd-4x2") if kind == "named" else FAMILIES[kind]
    table.save(tmp_path / "solver.json")
    nodes = [NODE_CLASS_MAPPINGS["EPDTableFile"]().load(str(tmp_path / "solver.json"), False)]
    if kind == "named":
        nodes.append(NODE_CLASS_MAPPINGS["EPDNamedTable"]().load("cifar10-epd-4x2", True))
    noise = unit_noise(SEEDS, (4,))
    wanted = epd.solve(table.rule(), MODEL, noise, levels(table))
    for sampler, sigmas in nodes:
        assert sigmas.dtype == torch.float32
        assert sigmas[-1] == 0
        steps: list[tuple[int, int]] = []
        out = sampler.sample(comfy_model, noise, sigmas, lambda i, denoised, x, total, s=steps: s.append((i, total)))
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-5)
        assert steps == [(i, 5) for i in range(5)]  # a host's bar ends at its end


class MaskedModel:
    """ComfyUI's KSamplerX0Inpaint: noise and picture are kept on the model, one row per sample."""

    def __init__(self, noise: Tensor, picture: Tensor) -> None:
        self.noise, self.picture = noise, picture

    def __call__(self, x: Tensor, sigma: Tensor, denoise_mask: Tensor | None) -> Tensor:
        if denoise_mask is None:
            return MODEL(x, sigma)
        level = sigma[:1].expand(len(x))  # as the masks that change with the noise level do
        x = x * denoise_mask + (self.picture + level[:, None] * self.noise) * (1 - denoise_mask)
        return MODEL(x, sigma) * denoise_mask + self.picture * (1 - denoise_mask)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("name", ["cifar10-epd-3x2", "cifar10-plugin-4x2"])
def test_a_noise_mask_with_any_batch(name: str, batch: int) -> None:
    table, seeds = named_table(name), range(batch)
    noise, picture = unit_noise(seeds, (4,), torch.float64), unit_noise([s + 50 for s in seeds], (4,), torch.float64)
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0]).double().expand(batch, 4)
    model, begin = MaskedModel(noise, picture), noise * table.sigmas[0]
    results = [
        sample_epd(model, begin, sigmas_of(table), {"denoise_mask": mask}, disable=True, table=table, parallel=parallel)
        for parallel in (True, False)
    ]
    assert torch.equal(*results)
    for i in seeds:
        alone = epd.solve(
            table.rule(), one_by_one(noise[i : i + 1], picture[i : i + 1], mask[:1]), noise[i : i + 1], levels(table)
        )
        torch.testing.assert_close(results[0][i : i + 1], alone, rtol=0, atol=1e-12)
    free = sample_epd(model, begin, sigmas_of(table), {"denoise_mask": None}, disable=True, table=table)
    torch.testing.assert_close(free, epd.solve(table.rule(), MODEL, noise, levels(table)), rtol=0, atol=1e-12)


def one_by_one(noise: Tensor, picture: Tensor, mask: Tensor) -> epd.Denoiser:
    """The same masked model of one sample, every row of a call at its own noise level."""
    model = MaskedModel(noise, picture)

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        levels = sigma.expand(len(x))
        return torch.cat([model(x[i : i + 1], levels[i : i + 1], mask) for i in range(len(x))])

    return denoiser


def test_tensors_in_tuples_are_tiled() -> None:
    table = named_table("cifar10-epd-3x2")

    def model(x: Tensor, sigma: Tensor, cond: tuple[Tensor, str]) -> Tensor:
        return MODEL.bind(cond[0], 2.0)(x, sigma)

    out = sample_epd(model, start(table), None, {"cond": (LABELS, "text")}, disable=True, table=table)
    noise = unit_noise(SEEDS, (4,), torch.float64)
    expected = epd.solve(table.rule(), MODEL.bind(LABELS, 2.0), noise, levels(table))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_no_graph_is_recorded() -> None:
    """As in k-diffusion, whose samplers run without gradients whatever the network's parameters ask for."""
    net, table = torch.nn.Linear(4, 4).double(), named_table("cifar10-epd-3x2")
    seen: list[dict[str, Any]] = []
    out = sample_epd(
        lambda x, sigma: net(x) / (1 + sigma[:, None]), start(table), sigmas_of(table), callback=seen.append,
        disable=True, table=table,
    )  # fmt: skip
    assert not out.requires_grad and seen and not any(entry["denoised"].requires_grad for entry in seen)
