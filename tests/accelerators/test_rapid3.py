"""A policy that accelerates: nothing changes where it computes, each sample is alone, a jump is a larger step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_pipelines
from helpers.accelerating import drivers, traces
from helpers.heads import always, layout_of, saved, undecided
from torch import Tensor

import epd
from epd.accelerators.heads import Heads
from epd.denoisers.as_network import AsNetwork
from epd.denoisers.digits import digits, digits_exact
from epd.denoisers.noise import unit_noise
from epd.denoisers.protocol import Model
from epd.denoisers.shapes_exact import shapes_exact
from epd.solvers.registry import make_rule
from epd.solvers.schedules import logsnr

STEPS, LEVELS = 8, logsnr(8, 0.02, 5.0)
EULER = make_rule("euler")
MODELS: dict[str, tuple[int, Callable[[], Model]]] = {
    "digits": (1, lambda: digits(2.0)),
    "digits-exact": (1, lambda: AsNetwork(digits_exact())),
    "shapes-exact": (3, lambda: AsNetwork(shapes_exact(renderings=1))),
}
SEEDS = [3, 14, 15, 92, 65]


def solved(model: Any, seeds: list[int] = SEEDS, sigmas: Tensor | None = None) -> Tensor:  # noqa: ANN401
    """By Euler on eight steps, or on others."""
    with torch.no_grad():
        noise = unit_noise(seeds, model.shape)
        return epd.solve(EULER, model.for_seeds(seeds), noise, LEVELS if sigmas is None else sigmas)


@pytest.mark.parametrize("name", MODELS)
def test_what_computes_everything_is_the_plain_sampler_to_the_bit(name: str, tmp_path: Path) -> None:
    channels, made = MODELS[name]
    model = made()
    plain = solved(model.model if isinstance(model, AsNetwork) else model)
    epd.accelerate(model, epd.RAPID3(saved(Heads(layout_of(channels, STEPS)), tmp_path)))
    with epd.measure(model, counts=False) as measured:
        assert torch.equal(solved(model), plain)
    assert measured.cost.share == 1.0 and measured.cost.calls == STEPS
    assert torch.equal(solved(epd.decelerate(model)), plain)


@pytest.mark.parametrize("name", MODELS)
def test_each_sample_of_a_mix_is_as_if_alone(name: str, tmp_path: Path) -> None:
    """Samples decide for themselves, so those that are computed in a step are now these, now those."""
    channels, made = MODELS[name]
    model = epd.accelerate(made(), epd.RAPID3(saved(undecided(layout_of(channels, STEPS)), tmp_path)))
    with epd.measure(model, counts=False) as measured:
        together = solved(model)
    copies = measured.calls[0].now.copies
    computed = [called.rows // copies for called in measured.calls]
    assert 1 < len(set(computed)) and any(0 < count < len(SEEDS) for count in computed), computed
    alone = 0.0
    for place, seed in enumerate(SEEDS):
        with epd.measure(model, counts=False) as measured:
            torch.testing.assert_close(solved(model, [seed])[0], together[place], atol=1e-6, rtol=1e-5)
        alone += measured.cost.rows / copies
    assert alone == sum(computed)


@pytest.mark.parametrize("jump", [2, 4])
def test_a_jump_is_a_larger_step(jump: int, tmp_path: Path) -> None:
    model = digits(2.0)
    fewer = solved(model, sigmas=LEVELS[::jump])
    epd.accelerate(model, epd.RAPID3(saved(Heads(layout_of(1, STEPS, jump=jump)), tmp_path)))
    with epd.measure(model, counts=False) as measured:
        torch.testing.assert_close(solved(model), fewer, atol=1e-6, rtol=1e-6)
    assert [c.rows for c in measured.calls] == [2 * len(SEEDS) * (n % jump == 0) for n in range(STEPS)]


def test_a_slope_that_is_always_reused_is_a_step_to_the_end(tmp_path: Path) -> None:
    model = AsNetwork(digits_exact())
    one = solved(model, sigmas=LEVELS[[0, -1]])
    epd.accelerate(model, epd.RAPID3(saved(always(layout_of(1, STEPS), "cache", 1), tmp_path)))
    torch.testing.assert_close(solved(model), one, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["sd3", "dit"])
def test_in_a_pipeline_nothing_changes_where_all_is_computed(name: str, tmp_path: Path) -> None:
    pipe = tiny_pipelines.build(name)
    channels = tiny_pipelines.network(pipe).config.in_channels
    path = saved(Heads(layout_of(channels, 3)), tmp_path)
    for driver, run in drivers(name, pipe):
        plain, bare = run(), traces(pipe)
        epd.accelerate(pipe, epd.RAPID3(path))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the policy was learned for 3 steps")  # some take four
            assert torch.equal(run(), plain), driver
        epd.decelerate(pipe)
        assert traces(pipe) == bare


def test_in_a_pipeline_less_is_computed_and_another_number_of_steps_is_warned_about(tmp_path: Path) -> None:
    pipe = tiny_pipelines.build("sd3")
    channels = tiny_pipelines.network(pipe).config.in_channels
    epd.accelerate(pipe, epd.RAPID3(saved(undecided(layout_of(channels, 4)), tmp_path)))
    with epd.measure(pipe, counts=False) as measured:
        tiny_pipelines.run(pipe, "sd3", 4)
    assert measured.cost.share < 1 and measured.store > 0
    with pytest.warns(UserWarning, match="learned for 4 steps"):
        tiny_pipelines.run(pipe, "sd3", 5)


def test_halves_of_a_guided_call_decide_alike(tmp_path: Path) -> None:
    """DiT steps both halves as samples: with decisions of their own they would no longer be of one state."""
    pipe = tiny_pipelines.build("dit")
    channels = tiny_pipelines.network(pipe).config.in_channels
    epd.accelerate(pipe, epd.RAPID3(saved(undecided(layout_of(channels, 5), seed=3), tmp_path)))
    with epd.measure(pipe, counts=False) as measured:
        tiny_pipelines.run(pipe, "dit", 5)
    assert measured.cost.share < 1
    assert all(called.rows % 2 == 0 for called in measured.calls)


def test_it_is_named_in_files_and_refused_beside_what_reuses_slopes(tmp_path: Path) -> None:
    from epd.accelerators.names import from_json, parse, to_json

    path = saved(Heads(layout_of(1, STEPS)), tmp_path)
    assert from_json(to_json([epd.RAPID3(path)])) == (epd.RAPID3(path),) == (parse(f"rapid3:policy={path}"),)
    assert epd.accelerate(digits(), epd.RAPID3(str(tmp_path))) is not None  # the folder of a run
    with pytest.raises(ValueError, match="reuse slopes"):
        epd.accelerate(digits(), epd.RAPID3(path), epd.Reuse((1,)))
    with pytest.raises(ValueError, match="names no file"):
        epd.RAPID3("")


def test_a_policy_that_is_loaded_is_proven(tmp_path: Path) -> None:
    path = saved(Heads(layout_of(1, STEPS)), tmp_path)
    assert epd.Policy.load(tmp_path) == epd.RAPID3(str(tmp_path)) and epd.Policy.load(path) == epd.RAPID3(path)
    (tmp_path / "cut").write_bytes(Path(path).read_bytes()[:-9])
    for wrong in ("cut", "missing"):
        with pytest.raises(ValueError, match=wrong):
            epd.Policy.load(tmp_path / wrong)
