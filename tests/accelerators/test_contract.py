"""What computes everything changes no bit, what is taken out leaves nothing, and no run leaves state to the next."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from helpers import tiny_pipelines
from helpers.accelerating import Everything, Following, PerSample, drivers, fails_in, traces
from helpers.pipeline_tables import assert_same, table_for
from helpers.tiny_pipelines import build, network, run
from torch import Tensor

import epd
from epd.accelerators.accelerate import accelerators_of
from epd.accelerators.site import Cover, Site

REUSE = epd.Reuse((1, 2))


@pytest.mark.parametrize("name", tiny_pipelines.BUILDERS)
def test_an_accelerator_that_computes_everything_is_bit_equal_and_leaves_nothing(name: str) -> None:
    pipe = build(name)
    for driver, made in drivers(name, pipe):
        expected = made()
        before = traces(pipe)
        epd.accelerate(pipe, Everything(), epd.Reuse((1000,)))
        assert traces(pipe) != before
        assert torch.equal(made(), expected), driver
        epd.decelerate(pipe)
        assert traces(pipe) == before
        assert driver != "stock" or torch.equal(made(), expected)


def learned(name: str = "sd", kind: str = "mixed", parallel: bool = True) -> Any:  # noqa: ANN401
    return epd.enable(build(name), table_for(name, kind), parallel=parallel)


@pytest.mark.parametrize("enabled", [True, False])
def test_other_sizes_batches_and_counts_between_leave_the_same_bits(enabled: bool) -> None:
    pipe = learned() if enabled else build("sd")

    def made(**changes: Any) -> Tensor:  # noqa: ANN401
        return run(pipe, "sd", 4, **changes)

    expected = made()
    epd.accelerate(pipe, REUSE)
    first = made()
    assert not torch.equal(first, expected)
    three = {"prompt": ["fox", "owl", "snow"], "generator": None, "height": 96}
    for changes in (three, {"prompt": "fox", "generator": None}, {"guidance_scale": 1.0}, {}):
        made(**changes)
        assert torch.equal(made(), first)
    if not enabled:
        run(pipe, "sd", 7)
        assert torch.equal(made(), first)
    epd.decelerate(pipe)
    assert torch.equal(made(), expected)


@pytest.mark.parametrize("call", [0, 1, 2])
@pytest.mark.parametrize("name", ["sd", "wan"])
def test_an_interruption_leaves_the_same_bits(name: str, call: int) -> None:
    pipe = epd.accelerate(learned(name), REUSE)
    bare = network(pipe)
    first = run(pipe, name, 4)
    end = fails_in(next(m for m in bare.modules() if isinstance(m, torch.nn.SiLU)), call)
    with pytest.raises(InterruptedError):
        run(pipe, name, 4)
    end()
    assert torch.equal(run(pipe, name, 4), first)


def test_enable_and_disable_underneath() -> None:
    pipe = build("pixart")
    stock, other = pipe.scheduler, copy.deepcopy(pipe.scheduler)
    run(pipe, "pixart", 4)
    before = traces(pipe)
    epd.accelerate(pipe, REUSE)
    first = run(pipe, "pixart", 4)
    epd.enable(pipe, table_for("pixart", "epd"))
    solved = run(pipe, "pixart", 4)
    epd.enable(pipe, table_for("pixart", "epd"), parallel=False)
    assert_same(run(pipe, "pixart", 4), solved)
    epd.disable(pipe)
    assert pipe.scheduler is stock
    assert torch.equal(run(pipe, "pixart", 4), first)
    pipe.scheduler = other  # put in by hand after the accelerator
    assert torch.equal(run(pipe, "pixart", 4), first)
    pipe.scheduler = stock
    epd.decelerate(pipe)
    assert traces(pipe) == before and not {"step", "set_timesteps"} & set(vars(other))


def test_accelerators_replace_what_was_there_and_a_refused_one_leaves_it() -> None:
    pipe = build("sd")
    before = traces(pipe)
    epd.accelerate(pipe, REUSE)
    epd.accelerate(pipe, epd.Reuse((1,)))
    assert accelerators_of(pipe) == (epd.Reuse((1,)),)
    with pytest.raises(ValueError, match="reuse and reuse do not go together: .* leave one out"):
        epd.accelerate(pipe, REUSE, REUSE)

    class Refused(Everything):
        def attach(self, site: Site) -> Following:
            super().attach(site)
            raise ValueError("refused: take another")

    with pytest.raises(ValueError, match="refused"):
        epd.accelerate(pipe, Refused())
    assert accelerators_of(pipe) == (epd.Reuse((1,)),)
    epd.accelerate(pipe)
    assert accelerators_of(pipe) == () and traces(pipe) == before
    epd.decelerate(epd.decelerate(pipe))
    with pytest.raises(ValueError, match="names no network to accelerate"):
        epd.accelerate(epd.own_model(lambda x, sigma: x / 2, (1,), 0.1, 1.0), REUSE)


def test_another_pipeline_on_the_same_network_is_not_accelerated() -> None:
    pipe = build("sd")
    other = tiny_pipelines.diffusers.StableDiffusionPipeline(
        **{**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)}, requires_safety_checker=False
    )
    other.set_progress_bar_config(disable=True)
    run(pipe, "sd", 4)
    expected, before = run(other, "sd", 4), traces(pipe)
    epd.accelerate(pipe, REUSE)
    first = run(pipe, "sd", 4)
    assert torch.equal(run(other, "sd", 4), expected)
    epd.accelerate(other, epd.Reuse((2,)))
    assert torch.equal(run(pipe, "sd", 4), first)
    epd.decelerate(pipe)  # not the last one that was put in
    assert not torch.equal(run(other, "sd", 4), expected)
    epd.decelerate(other)
    assert traces(pipe) == before and torch.equal(run(other, "sd", 4), expected)
    epd.accelerate(other, REUSE)
    del other
    gc.collect()
    assert traces(pipe) == before, "an accelerator goes with its pipeline"


def test_copies_of_network_and_scheduler_are_bare() -> None:
    pipe = build("sd")
    expected = run(pipe, "sd", 3)
    epd.accelerate(pipe, REUSE)
    parts = {**pipe.components, "unet": copy.deepcopy(pipe.unet), "scheduler": copy.deepcopy(pipe.scheduler)}
    other = tiny_pipelines.diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    assert torch.equal(run(other, "sd", 3), expected)
    assert not isinstance(pickle.loads(pickle.dumps(pipe.unet)).forward, Cover)


def test_calls_outside_of_a_run_are_bare() -> None:
    pipe = build("sd")
    arguments = {
        "sample": torch.ones(2, 4, 8, 8), "timestep": torch.tensor(5.0), "encoder_hidden_states": torch.ones(2, 7, 32),
    }  # fmt: skip
    expected = pipe.unet(**arguments).sample
    epd.accelerate(pipe, REUSE)
    seen: list[Tensor] = []

    def look(pipe: Any, index: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
        seen.append(pipe.unet(**arguments).sample)
        return {}

    first = run(pipe, "sd", 4)
    assert torch.equal(run(pipe, "sd", 4, callback_on_step_end=look), first)
    assert len(seen) == 4 and all(torch.equal(x, expected) for x in seen)


@pytest.mark.parametrize("compiled", ["in place", "wrapper"])
def test_compiled_networks(compiled: str) -> None:
    pipe = build("dit")
    if compiled == "in place":
        pipe.transformer.compile(backend="eager")
        with pytest.raises(ValueError, match="compiled in place.*torch.compile"):
            epd.accelerate(pipe, REUSE)
        return
    expected = run(pipe, "dit", 3)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    before = sorted(vars(pipe.transformer))
    epd.accelerate(pipe, epd.Reuse((1000,)))
    assert torch.equal(run(pipe, "dit", 3), expected)
    with pytest.raises(ValueError, match="is compiled.*_orig_mod"):
        epd.accelerate(pipe, Everything())
    epd.decelerate(pipe)
    assert sorted(vars(pipe.transformer)) == before


@pytest.mark.parametrize("name", ["sd3", "flux", "dit", "ddpm", "wan"])
def test_rows_that_are_decided_for_each_sample_are_those_of_each_sample_alone(name: str) -> None:
    """Sample 1 takes its slope again in step 1, sample 0 in step 2: each as if both did."""
    pipe = build(name)
    for driver, made in drivers(name, pipe, "epd"):
        axis = 0 if name != "dit" or driver not in ("stock", "batched", "serial") else None
        if axis is None:
            continue  # its pipeline steps both halves, which are four samples
        alone = []
        for step in (2, 1):
            epd.accelerate(pipe, PerSample(((step, 0), (step, 1))))
            alone.append(made())
        epd.accelerate(pipe, PerSample(((1, 1), (2, 0))))
        mixed = made()
        epd.decelerate(pipe)
        assert not torch.equal(alone[0], alone[1])
        assert_same(mixed, torch.stack([alone[0][0], alone[1][1]]), 2e-6)
