"""Slices beside what leaves out rows and blocks: the same as that alone, or a refusal that says what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.hooks.pyramid_attention_broadcast import (
    PyramidAttentionBroadcastConfig,
    apply_pyramid_attention_broadcast,
)
from helpers.accelerating import PerSample, traces
from helpers.pipeline_tables import table_for
from helpers.tiny_pipelines import build, run
from helpers.tiny_videos import run_svd, svd_pipeline
from torch import Tensor

import epd
from epd.accelerators.accelerate import accelerators_of
from epd.accelerators.names import spelt

KINDS = ("animatediff", "svd")
PARTS = epd.Slices(rows=4, pixels=40)
COMPANY = [epd.Rehash((0, 2)), epd.Rehash((0, 2), "deep"), epd.Rehash((0, 2), "last_temporal")]


def apart(own: Tensor, whole: Tensor) -> float:
    return float((own - whole).abs().max() / whole.abs().max())


@pytest.mark.parametrize("member", COMPANY, ids=spelt)
@pytest.mark.parametrize("kind", KINDS)
def test_beside_others_whatever_their_order(kind: str, member: Any) -> None:  # noqa: ANN401
    """The same as without slices, at the same cost; in which order they are given does not count."""
    if kind == "animatediff" and member == COMPANY[-1]:
        with pytest.raises(ValueError, match="give 'output', which is the same"):
            epd.accelerate(build(kind), PARTS, member)
        return
    parts = PARTS if kind == "animatediff" else epd.Slices(rows=2, pixels=11)
    pipe, made = (svd_pipeline(), run_svd) if kind == "svd" else (build(kind), lambda p, n: run(p, kind, n))
    before = traces(pipe)[:3]
    epd.accelerate(pipe, member)
    with epd.measure(pipe, counts=False) as alone:
        expected = made(pipe, 4)
    own = []
    for both in ((parts, member), (member, parts)):
        epd.accelerate(pipe, *both)
        assert accelerators_of(pipe) == (member, parts)
        with epd.measure(pipe, counts=False) as measured:
            own.append(made(pipe, 4))
        assert measured.cost == alone.cost and alone.cost.share < 1
    assert torch.equal(own[0], own[1]) and 0 < apart(own[0], expected) <= 1e-5
    epd.decelerate(pipe)
    assert traces(pipe)[:3] == before


def test_beside_others_in_a_fan_and_for_some_samples() -> None:
    pipe = build("animatediff")
    for member in (PerSample(((1, 1), (2, 0))), epd.Reuse((1,), "fan")):
        if isinstance(member, epd.Reuse):
            epd.enable(pipe, table_for("animatediff", "epd"))
        made = []
        for beside in ((), (PARTS,)):
            epd.accelerate(pipe, member, *beside)
            made.append(run(pipe, "animatediff", 4))
        assert 0 < apart(made[1], made[0]) <= 1e-5


def test_what_cannot_be_beside_it() -> None:
    cache = PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 1)
    for others, text in (
        ((epd.Native(cache),), "native and slices do not go together: a part would be given .*; leave one out"),
        ((PARTS,), "slices and slices do not go together"),
        ((epd.FirstBlock(0.1),), "blocks of UNetMotionModel are not known"),
        ((epd.RAS(0.5),), "UNetMotionModel"),
    ):
        pipe = build("animatediff")
        before = traces(pipe)
        with pytest.raises(ValueError, match=text):
            epd.accelerate(pipe, *others, PARTS)
        assert traces(pipe) == before
    apply_pyramid_attention_broadcast(pipe.unet, cache)
    with pytest.raises(ValueError, match=r"what it kept of another: network.disable_cache\(\) first"):
        epd.accelerate(pipe, PARTS)
