"""The shipped configurations: they parse, and start on the published schedules with the published structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_pipelines
from helpers.counting import counting
from helpers.pipeline_families import FAMILIES

import epd
from epd.commands.options import Evaluate
from epd.commands.yaml_config import load_config, read_yaml
from epd.denoisers.mixture import GaussianMixture
from epd.denoisers.rows import limit_rows
from epd.distill.config import DistillConfig
from epd.distill.initial import initial_table
from epd.distill.run import run_distill
from epd.evaluation.compare import chosen
from epd.evaluation.handmade import handmade
from epd.pipelines.frames import frame_of
from epd.pipelines.options import ModelOptions
from epd.solvers import schedules
from epd.solvers.named import named_table

FOLDER = Path(epd.__file__).parent / "experiments" / "configs"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml") if not path.name.startswith("evaluate-"))
EVALUATIONS = ("cifar10", "ffhq64", "imagenet64")
MODEL_KEYS = {"model", "rows", *ModelOptions.model_fields}
TINY = {"flux-1024.yaml": "flux", "sd15-512.yaml": "sd", "sd3-1024.yaml": "sd3", "sd3-512.yaml": "sd3"}


def split(name: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: ANN401 - any field
    """(what says which model, what says how it is distilled)."""
    data = {**read_yaml(FOLDER / name), **changes}
    model = {key: data.pop(key) for key in list(data) if key in MODEL_KEYS}
    return model, data


def distilling(name: str, **changes: Any) -> DistillConfig:  # noqa: ANN401
    data = split(name, **changes)[1]
    return DistillConfig.model_validate(data)


def model_of(path: str, low: float, high: float) -> GaussianMixture:
    return GaussianMixture(np.zeros((1, 2)), 1.0, path=path, sigma_min=low, sigma_max=high)  # type: ignore[arg-type]


def test_the_papers_set_ups_are_there() -> None:
    assert FILES == [
        "edm-cifar10.yaml", "edm-ffhq64.yaml", "edm-imagenet64.yaml", "flux-1024.yaml",
        "sd15-512.yaml", "sd3-1024.yaml", "sd3-512.yaml",
    ]  # fmt: skip
    wanted = {"flux-1024": (3.5, 1024), "sd15-512": (7.5, 512), "sd3-1024": (4.5, 1024), "sd3-512": (4.5, 512)}
    for name, (guidance, resolution) in wanted.items():
        model = split(f"{name}.yaml")[0]
        assert (model["guidance"], model["resolution"]) == (guidance, resolution)


@pytest.mark.parametrize("name", FILES)
def test_every_file_parses(name: str) -> None:
    model, _ = split(name)
    ModelOptions(**{key: value for key, value in model.items() if key != "model"})
    assert isinstance(model["model"], str)
    distilling(name)
    head = (FOLDER / name).read_text()
    assert f"--config {name}" in head
    assert "arXiv" in head


@pytest.mark.parametrize(
    ("name", "published", "path", "low", "high"),
    [
        ("sd3-512.yaml", "sd3-512-rdpo-10x2", "flow", 0.003, 1.0),
        ("flux-1024.yaml", "flux-rdpo-8x2", "flow", 0.001, 1.0),
        ("edm-cifar10.yaml", "cifar10-epd-3x2", "ve", 0.002, 80.0),
    ],
)
def test_training_starts_from_the_published_structure(
    name: str, published: str, path: str, low: float, high: float
) -> None:
    table = initial_table(distilling(name), model_of(path, low, high))
    known = named_table(published)
    assert (table.num_steps, table.depth, table.nfe, table.num_parallel, table.afs) == (
        known.num_steps, known.depth, known.nfe, known.num_parallel, known.afs,
    )  # fmt: skip
    np.testing.assert_allclose(table.sigmas, known.sigmas, rtol=3e-7)


@pytest.mark.parametrize(("calls", "published"), [(3, "2x2"), (5, "3x2"), (7, "4x2"), (9, "5x2")])
@pytest.mark.parametrize("family", ["epd", "plugin"])
def test_one_edm_file_serves_all_budgets(calls: int, published: str, family: str) -> None:
    changes = {"calls": calls, "family": "epd" if family == "epd" else "epd-plugin"}
    table = initial_table(distilling("edm-cifar10.yaml", **changes), model_of("ve", 0.002, 80.0))
    known = named_table(f"cifar10-{family}-{published}")
    assert (table.depth, table.nfe, table.order) == (calls, known.nfe, known.order)
    np.testing.assert_allclose(table.sigmas, known.sigmas, rtol=1e-9)


def test_the_discrete_schedule_of_stable_diffusion_is_the_published_one() -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    alphas_cumprod = frame_of(scheduler).alphas_cumprod
    assert alphas_cumprod is not None
    known = named_table("sd15-rdpo-10x2").sigmas
    np.testing.assert_allclose(schedules.discrete(10, alphas_cumprod).numpy(), known, rtol=3e-5)  # float32 betas


@pytest.mark.parametrize("name", TINY)
def test_the_configurations_of_large_models_keep_to_a_row_limit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row a call: the dry run as it is shipped, then training with a pool of two, with tiny networks."""
    monkeypatch.setenv("EPD_CACHE", str(tmp_path / "cache"))
    pipe = tiny_pipelines.build(TINY[name])
    model = limit_rows(FAMILIES[TINY[name]].model(pipe, 1.0), 1)
    rows: list[int] = []
    network = pipe.components.get("unet") or pipe.components["transformer"]
    network.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len([*args, *kwargs.values()][0])), with_kwargs=True
    )
    assert run_distill(model, distilling(name), tmp_path / "run", dry_run=True) is None
    assert "at most 1 in one network call" in capsys.readouterr().out
    small = distilling(name, pool=2, validation=1, batch=2, accumulate=1, iterations=1, teacher_multiplier=1)
    path = run_distill(model, small, tmp_path / "run")
    assert path is not None and epd.Table.load(path).depth == small.calls
    assert set(rows) == {1}


@pytest.mark.parametrize("name", sorted({*FILES} - {*TINY}))
def test_the_configurations_of_edm_models_dry_run_in_small_calls(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = counting((3, 64, 64), plain=True)
    assert run_distill(limit_rows(model, 4), distilling(name), tmp_path / "run", dry_run=True) is None
    assert "at most 4 in one network call" in capsys.readouterr().out and max(model.calls) == 4


@pytest.mark.parametrize("name", EVALUATIONS)
def test_the_papers_tables_are_evaluated_on_the_model_that_they_are_learned_for(name: str) -> None:
    options = load_config(FOLDER / f"evaluate-{name}.yaml", Evaluate)
    learned = split(f"edm-{name}.yaml")[0]
    assert options.model == learned["model"] and options.samples == 50_000 and options.seed == 0
    assert options.reference is not None and options.reference.suffix == ".npz" and options.features == "inception"
    assert {solver.name for solver in chosen(handmade("ve"), options.solvers)} == {*options.solvers}
    head = (FOLDER / f"evaluate-{name}.yaml").read_text()
    assert f"epd evaluate --config evaluate-{name}.yaml" in head and "arXiv 2507.14797" in head
    if name == "cifar10":
        tables = [named_table(table) for table in options.tables]
    else:
        assert [*options.tables] == [f"runs/{name}/{calls}-calls" for calls in (3, 5, 7, 9)]
        assert f"epd distill --config edm-{name}.yaml --calls 3,5,7,9 --out runs/{name}" in head
        model = model_of("ve", 0.002, 80.0)
        tables = [initial_table(distilling(f"edm-{name}.yaml", calls=calls), model) for calls in (3, 5, 7, 9)]
    costs = {(table.depth, table.nfe) for table in tables}
    assert costs == {(3, 5), (5, 8), (7, 11), (9, 14)}
    assert {*options.calls} == {count for cost in costs for count in cost}  # equal calls, and equal evaluations
