"""The caches of diffusers: what they are without us where they can be, and under a fan where only we can."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from diffusers.hooks.faster_cache import FasterCacheConfig
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig
from diffusers.hooks.hooks import CacheContext, _set_cache_context
from diffusers.hooks.mag_cache import MagCacheConfig
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastConfig
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig, apply_taylorseer_cache
from diffusers.hooks.text_kv_cache import TextKVCacheConfig
from helpers.accelerating import traces
from helpers.pipeline_tables import assert_same, table_for
from helpers.tiny_pipelines import build, run

import epd
from epd.accelerators.names import from_json, parse, spelt, to_json

RANGE = (-1, 1001)
IDENTIFIERS = [r"transformer_blocks\.\d+\.(attn\d?|ff(_context)?)"]


def taylor(**changes: Any) -> TaylorSeerCacheConfig:  # noqa: ANN401
    told = {"cache_interval": 2, "disable_cache_before_step": 2, "taylor_factors_dtype": torch.float32}
    return TaylorSeerCacheConfig(**{**told, "cache_identifiers": IDENTIFIERS, **changes})


def faster(**changes: Any) -> FasterCacheConfig:  # noqa: ANN401
    kinds = ("spatial_attention_timestep_skip", "unconditional_batch_timestep_skip")
    kinds += ("low_frequency_weight_update_timestep", "high_frequency_weight_update_timestep")
    ranges = {f"{kind}_range": RANGE for kind in kinds}
    return FasterCacheConfig(tensor_format="BCHW", **{**ranges, **changes})


BROADCAST = PyramidAttentionBroadcastConfig(2, spatial_attention_timestep_skip_range=RANGE)
MAGNITUDE = MagCacheConfig(threshold=0.5, mag_ratios=[1.0, 0.9, 0.8, 0.7], num_inference_steps=4)
CACHES = {
    "taylor": taylor(), "broadcast": BROADCAST, "magnitude": MAGNITUDE, "first block": FirstBlockCacheConfig(10.0),
    "faster": faster(), "faster attention": faster(is_guidance_distilled=True),
}  # fmt: skip


def quiet(pipe: Any, name: str, **changes: Any) -> torch.Tensor:  # noqa: ANN401
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.meshgrid")  # FasterCache's
        return run(pipe, name, 4, **changes)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", ["dit", "pixart", "sd3"])
def test_under_a_fan_of_two_the_points_are_told_apart(name: str, cache: str) -> None:
    """In one call the same as one after another; a second run, too; taken out nothing is left."""
    if (name, cache) in (("sd3", "first block"), ("dit", "faster")):
        with pytest.raises(ValueError, match=r"take epd.FirstBlock|is_guidance_distilled=True"):
            epd.accelerate(build(name), epd.Native(CACHES[cache]))
        return
    pipe, made = epd.enable(build(name), table_for(name, "memory")), []
    dense, before = quiet(pipe, name), traces(pipe)
    for parallel in (True, False):
        epd.enable(pipe, table_for(name, "memory"), parallel=parallel)
        epd.accelerate(pipe, epd.Native(CACHES[cache]))
        with epd.measure(pipe, counts=False) as measured:
            made.append(quiet(pipe, name))
        assert torch.equal(quiet(pipe, name), made[-1]), "a second run"
        assert max(c.now.points for c in measured.calls) == (2 if parallel else 1)
        assert measured.cost.share < 1 and measured.store > 0
    assert_same(made[0], made[1], 1e-5)
    assert not torch.equal(made[0], dense)
    epd.enable(pipe, table_for(name, "memory"))
    epd.decelerate(pipe)
    assert torch.equal(quiet(pipe, name), dense) and traces(pipe) == before


def test_without_a_fan_it_is_the_cache_of_diffusers() -> None:
    pipe, other = build("sd3"), build("sd3")
    epd.accelerate(pipe, epd.Native(taylor(max_order=2)))
    apply_taylorseer_cache(other.transformer, taylor(max_order=2))
    _set_cache_context(other.transformer, CacheContext("one"))
    with epd.measure(pipe, counts=False) as measured:
        made = run(pipe, "sd3", 8)
    assert torch.equal(made, run(other, "sd3", 8))
    computed = [called.blocks > 0 for called in measured.calls]
    assert computed == [n < 2 or (n - 2 - 1) % 2 == 0 for n in range(8)], "the rule of its documentation"


def test_flops_of_what_is_left_out() -> None:
    pipe = build("dit")
    with epd.measure(pipe) as dense:
        run(pipe, "dit", 4)
    epd.accelerate(pipe, epd.Native(taylor(disable_cache_before_step=1)))
    with epd.measure(pipe) as measured:
        run(pipe, "dit", 4)
    rows, tokens, width = 4, 16, 16
    left = rows * 2 * tokens * (12 * width**2 + 2 * tokens * width)  # attention and feed-forward of a block
    skipped = sum(1 - called.blocks for called in measured.calls)
    assert skipped == pytest.approx(2)  # steps 1 and 3: interval 2 from step 2
    assert dense.flops - measured.flops == pytest.approx(2 * 2 * left, rel=0.01)


@pytest.mark.parametrize("config", [TaylorSeerCacheConfig(), TextKVCacheConfig(), FirstBlockCacheConfig()])
def test_a_cache_that_finds_nothing_says_what_to_pass(config: Any) -> None:  # noqa: ANN401
    name = "dit" if isinstance(config, TaylorSeerCacheConfig) else "sd"
    pipe = build(name)
    before = traces(pipe)
    with pytest.raises(ValueError, match=r"finds no (module|block) in \w+: (give it cache_identifiers=|take epd)") as e:
        epd.accelerate(pipe, epd.Native(config))
    assert traces(pipe) == before
    if name == "dit":
        found = eval(str(e.value).split("cache_identifiers=")[1].split(", or some")[0])
        assert found == [r"transformer_blocks\.\d+\.attn1", r"transformer_blocks\.\d+\.ff"]
        epd.accelerate(pipe, epd.Native(taylor(cache_identifiers=found)))


def test_two_guidance_branches_are_two_contexts() -> None:
    """Where the prompt that is guided away from is the prompt itself guidance does nothing, whatever is cached."""
    pipe = epd.accelerate(build("wan"), epd.Native(MAGNITUDE))
    made = run(pipe, "wan", 4, negative_prompt=["a red fox", "an owl in snow"], guidance_scale=3.0)
    assert_same(made, run(pipe, "wan", 4, guidance_scale=1.0), 1e-5)


def test_the_number_of_steps_is_that_of_the_run() -> None:
    """MagCache keeps 20 % of the steps whole, whatever number its configuration was made with."""
    pipe, counted = build("sd3"), []
    for number in (4, 28):
        config = MagCacheConfig(threshold=0.5, mag_ratios=[1.0] * number, num_inference_steps=number)
        epd.accelerate(pipe, epd.Native(config))
        with epd.measure(pipe, counts=False) as measured:
            run(pipe, "sd3", 10)
        counted.append([called.blocks for called in measured.calls])
    assert counted[0] == counted[1] and counted[0][:2] == [1, 1] and counted[0][2] < 1


def test_calls_outside_of_a_run_are_bare() -> None:
    pipe = build("dit")
    arguments = {
        "hidden_states": torch.ones(1, 4, 8, 8),
        "timestep": torch.tensor([5]),
        "class_labels": torch.tensor([1]),
    }
    expected = pipe.transformer(**arguments)[0]
    for config in (FirstBlockCacheConfig(10.0), taylor(), faster(is_guidance_distilled=True)):
        epd.accelerate(pipe, epd.Native(config))
        first = run(pipe, "dit", 4)
        assert torch.equal(pipe.transformer(**arguments)[0], expected)
        assert torch.equal(run(pipe, "dit", 4), first)


def test_what_is_on_already_is_refused() -> None:
    pipe = build("sd3")
    apply_taylorseer_cache(pipe.transformer, taylor())
    for member in (epd.Native(BROADCAST), epd.FirstBlock(0.1)):
        with pytest.raises(ValueError, match="a cache of diffusers is on"):
            epd.accelerate(pipe, member)
    with pytest.raises(ValueError, match="first_block and native do not go together"):
        epd.accelerate(build("sd3"), epd.FirstBlock(0.1), epd.Native(taylor()))


@pytest.mark.parametrize("config", [taylor(), BROADCAST, MAGNITUDE, faster(), TaylorSeerCacheConfig()])
def test_as_text_and_as_json(config: Any) -> None:  # noqa: ANN401
    native = epd.Native(config)
    assert from_json(to_json([native])) == (native,)
    again: Any = from_json(to_json([native]))[0]
    assert epd.Native(again.config()) == native
    plain = epd.Native(taylor(cache_identifiers=["transformer_blocks.*(attn.?|ff)"]))
    assert parse(spelt(plain)) == plain


def test_settings_are_checked() -> None:
    weighted = epd.Native(faster(attention_weight_callback=lambda module: 0.3))
    with pytest.raises(ValueError, match="attention_weight_callback was a function, which no file can hold"):
        from_json(to_json([weighted]))
    for cache, settings, text in (
        ("LayerSkipConfig", (), "is no cache of diffusers"),
        ("TaylorSeerCacheConfig", ("interval=3",), "has no setting 'interval=3': give name=value of cache_identifiers"),
        ("TaylorSeerCacheConfig", ("taylor_factors_dtype=float3",), "is no type of numbers"),
    ):
        with pytest.raises(ValueError, match=text):
            epd.Native(cache, settings)
