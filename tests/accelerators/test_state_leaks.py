"""What users of other caches report: state of another request, step count, schedule, size, batch or guidance branch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks.mag_cache import MagCacheConfig
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig
from helpers import feedback, tiny_pipelines
from helpers.accelerating import fails_in
from helpers.heads import layout_of, saved, undecided
from helpers.pipeline_tables import assert_same
from helpers.tiny_pipelines import PROMPTS, build, diffusers, network, run
from helpers.tiny_videos import run_svd, svd_pipeline
from torch import Tensor
from torch.nn import Module

import epd
from epd.accelerators.names import ACCELERATORS, label

STEPS = 4
TAYLOR = TaylorSeerCacheConfig(
    cache_interval=2, disable_cache_before_step=2, taylor_factors_dtype=torch.float32,
    cache_identifiers=[r"transformer_blocks\.\d+\.(attn\d?|ff(_context)?)"],
)  # fmt: skip
MAGNITUDE = MagCacheConfig(threshold=0.5, mag_ratios=[1.0, 0.9, 0.8, 0.7], num_inference_steps=4)
ONE = {"prompt": "fox", "generator": torch.Generator().manual_seed(3)}
OTHERS: dict[str, tuple[dict[str, Any], ...]] = {
    "sd3": ({}, {"num_inference_steps": 7}, {"sigmas": [1.0, 0.5, 0.2, 0.1]}, {"height": 96}, {"guidance_scale": 1.0},
            ONE),
    "sd": ({}, {"num_inference_steps": 7}, {"sigmas": [9.0, 3.0, 1.0, 0.3]}, {"height": 96}, {"guidance_scale": 1.0},
           ONE),
    "wan": ({}, {"num_inference_steps": 6}, {"height": 32}, {"guidance_scale": 1.0}, {**ONE, "num_frames": 9}),
    "svd": ({}, {"num_inference_steps": 3}, {"sigmas": [9.0, 3.0, 1.0, 0.3]}, {"height": 16}, {"num_frames": 2},
            {"max_guidance_scale": 1.0}),
}  # fmt: skip


@dataclass
class Case:
    """A member in a pipeline, and where a run of it is interrupted."""

    pipe: Any
    kind: str
    inside: Module

    def made(self, **changes: Any) -> Tensor:  # noqa: ANN401
        if self.kind == "svd":
            return run_svd(self.pipe, **{"num_inference_steps": STEPS, **changes})
        return run(self.pipe, self.kind, STEPS, **changes)


def transformer(member: Any, kind: str = "sd3", inside: str = "transformer_blocks.1.norm2") -> Callable[[Path], Case]:  # noqa: ANN401
    def case(folder: Path) -> Case:
        pipe = epd.accelerate(build(kind), member)
        return Case(pipe, kind, network(pipe).get_submodule(inside))

    return case


def learned_feedback(folder: Path) -> Case:
    pipe = feedback.deep("sd3")
    feedback.write(network(pipe), folder / "feedback.safetensors", 0.5)
    epd.accelerate(pipe, epd.ILF(str(folder / "feedback.safetensors")))
    return Case(pipe, "sd3", network(pipe).transformer_blocks[2].ff)


def policy(folder: Path) -> Case:
    pipe = build("sd3")
    heads = undecided(layout_of(network(pipe).config.in_channels, STEPS))
    epd.accelerate(pipe, epd.RAPID3(saved(heads, folder)))
    return Case(pipe, "sd3", network(pipe).transformer_blocks[0])


def unet(member: Any) -> Callable[[Path], Case]:  # noqa: ANN401
    def case(folder: Path) -> Case:
        pipe = build("sd")
        pipe.scheduler = diffusers.EulerDiscreteScheduler(**tiny_pipelines.BETAS)
        epd.accelerate(pipe, member)
        return Case(pipe, "sd", network(pipe).mid_block)

    return case


def video(*members: Any) -> Callable[[Path], Case]:  # noqa: ANN401
    def case(folder: Path) -> Case:
        pipe = epd.accelerate(svd_pipeline(), *members)
        return Case(pipe, "svd", network(pipe).mid_block)

    return case


CASES: dict[str, Callable[[Path], Case]] = {
    "reuse": transformer(epd.Reuse((1, 2))),
    "rehash": transformer(epd.Rehash((0, 2))),
    "rehash, deep": unet(epd.Rehash((0, 2), "deep")),
    "rehash, last_temporal": video(epd.Rehash((0, 2), "last_temporal")),
    "first_block": transformer(epd.FirstBlock(0.6)),
    "teacache": transformer(epd.TeaCache(0.3, each="call")),
    "first_block, two branches": transformer(epd.FirstBlock(0.3), "wan", "blocks.1.norm2"),
    "native, taylor": transformer(epd.Native(TAYLOR)),
    "native, magnitude": transformer(epd.Native(MAGNITUDE)),
    "ras": transformer(epd.RAS(0.5, warmup=2)),
    "ras, published": transformer(epd.RAS((0.75, 0.5), score="std", warmup=1, gap=None, starvation="published")),
    "rapid3": policy,
    "ilf": learned_feedback,
    "slices": video(epd.Rehash((0, 2), "deep"), epd.Slices(rows=3, pixels=32)),
}


def test_every_member_has_a_case() -> None:
    assert {name.partition(",")[0] for name in CASES} == set(ACCELERATORS)


@pytest.mark.filterwarnings("ignore:the feedback was learned for 4", "ignore:the policy was learned for 4")
@pytest.mark.parametrize("name", CASES)
def test_nothing_of_another_run_is_left(name: str, tmp_path: Path) -> None:
    """The same bits after another request, step count, schedule, size, batch, guidance off, and an interruption."""
    case = CASES[name](tmp_path)
    with epd.measure(case.pipe, counts=False) as measured:
        first = case.made()
    assert measured.cost.share != 1, "nothing is left out or repeated: the test shows nothing"
    for changes in OTHERS[case.kind]:
        other = case.made(**changes)
        assert not changes or other.shape != first.shape or not torch.equal(other, first), changes
        assert torch.equal(case.made(), first), changes
    end = fails_in(case.inside, 1)
    with pytest.raises(InterruptedError):
        case.made()
    end()
    assert torch.equal(case.made(), first)


BRANCHED: list[tuple[str, Any]] = [
    ("wan", epd.Reuse((1,))), ("wan", epd.Rehash((0, 2))), ("wan", epd.FirstBlock(0.3)), ("wan", epd.TeaCache(0.2)),
    ("wan", epd.Native(MAGNITUDE)), ("flux", epd.RAS(0.5, warmup=2)), ("flux", epd.FirstBlock(0.3)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "member"), BRANCHED, ids=[f"{n}-{label(m)}" for n, m in BRANCHED])
def test_two_guidance_branches_are_apart(name: str, member: Any) -> None:  # noqa: ANN401
    """With next to no guidance the prompt's branch is all that counts: the other one has left nothing in it."""
    scale = "guidance_scale" if name == "wan" else "true_cfg_scale"
    pipe, made = epd.accelerate(build(name), member), []
    for value in (1.0, 1 + 1e-6):
        with epd.measure(pipe, counts=False) as measured:
            made.append(run(pipe, name, STEPS, **{scale: value}, negative_prompt=list(reversed(PROMPTS[:2]))))
        assert measured.cost.share < 1
        assert {called.now.branch for called in measured.calls} == ({0} if value == 1 else {0, 1})
    assert_same(made[1], made[0], 1e-5)
