"""Image-to-image with dense tables: the noise is that of the state, whatever the network is told there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.pipeline_families import FAMILIES, SEEDS
from helpers.pipeline_tables import assert_same, table_for
from helpers.tiny_pipelines import build, calls_of, diffusers
from torch import Tensor

import epd
from epd.denoisers.noise import unit_noise
from epd.solvers.answers import batched
from epd.solvers.late import late_start
from epd.solvers.walk import drive, walk

KINDS = {"sd": diffusers.StableDiffusionImg2ImgPipeline, "sd3": diffusers.StableDiffusion3Img2ImgPipeline}


def image_to_image(name: str) -> Any:  # noqa: ANN401
    extra = {"requires_safety_checker": False} if name == "sd" else {}
    pipe = KINDS[name](**build(name).components, **extra)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def continued(name: str, table: epd.Table, clean: Tensor, begin: int) -> Tensor:
    """The table from its step `begin` on, from the clean latents with the noise of that step."""
    model = FAMILIES[name].model(build(name), 3.0)
    levels = torch.tensor(table.sigmas, dtype=torch.float64)
    signal = 1 - levels[begin] if name == "sd3" else 1.0
    x = signal * clean + levels[begin] * unit_noise(SEEDS, model.shape)
    rule = late_start(table.rule(), begin, table.columns, table.consistent) if begin else table.rule()
    with torch.no_grad():
        *_, last = drive(walk(rule, x, levels, begin), batched(model.for_seeds(SEEDS)))
    return last.x


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("step", [0, 2, 3])
@pytest.mark.parametrize("kind", ["dense", "dense fan"])
@pytest.mark.parametrize("name", KINDS)
def test_a_run_from_the_middle_is_the_tables_rest(name: str, kind: str, step: int, parallel: bool) -> None:
    """No run begins at step 1: from the first call on, which is there, it is the whole, with its step of no call."""
    pipe, table = image_to_image(name), table_for(name, kind)
    clean = unit_noise((8, 9), (4, 8, 8)) / 2
    epd.enable(pipe, table, parallel)
    count = calls_of(pipe)
    per_step = count // 3
    call = FAMILIES[name].call(SEEDS, count, 3.0)
    begin = max(step - 1, 0) * per_step
    if name == "sd":  # which takes the size of the picture
        del call["height"], call["width"]
    cut = 0.1 if name == "sd" else -0.1  # one counts the calls that are left, the other those that are not
    with torch.no_grad():
        made = pipe(**call, image=clean, strength=(count - begin + cut) / count if begin else 1.0)[0]
    assert pipe.scheduler.begin_index == begin
    assert_same(made, continued(name, table, clean, step))
