"""SVD's own scheduler: networks that are told the logarithm of the noise level, and predict v."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from helpers.tiny_videos import run_svd, svd_pipeline
from torch import Tensor, nn

import epd
from epd.pipelines.frames import frame_of

# As published with the weights.
PUBLISHED: dict[str, Any] = {
    "prediction_type": "v_prediction", "timestep_type": "continuous", "use_karras_sigmas": True, "sigma_min": 0.002,
    "sigma_max": 700.0, "timestep_spacing": "leading", "steps_offset": 1, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}  # fmt: skip


def pipeline(**changes: object) -> Any:  # noqa: ANN401
    pipe = svd_pipeline()
    pipe.scheduler = EulerDiscreteScheduler(**{**PUBLISHED, **changes})
    return pipe


WITHOUT_RANGE = {"use_karras_sigmas": False, "sigma_min": None, "sigma_max": None}


@pytest.mark.parametrize("changes", [{}, WITHOUT_RANGE, {"timestep_spacing": "trailing"}])
def test_our_euler_is_the_stock_one(changes: dict[str, object]) -> None:
    pipe = pipeline(**changes)
    expected, levels = run_svd(pipe, 5), pipe.scheduler.sigmas
    pipe.scheduler = epd.EPDScheduler.from_config(pipe.scheduler.config, rule="euler")
    torch.testing.assert_close(run_svd(pipe, 5), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    torch.testing.assert_close(pipe.scheduler.timesteps, 0.25 * levels[:-1].log(), rtol=1e-5, atol=1e-5)


def test_a_fan_is_told_the_logarithm_of_its_own_levels() -> None:
    pipe, told = pipeline(), []
    table = epd.Table(sigmas=[700.0, 20.0, 1.0, 0.002], nodes=[[0.3, 0.7]] * 3, weights=[[0.5, 0.5]] * 3)
    epd.enable(pipe, table)

    def listen(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], output: object) -> None:
        told.append(float(args[1] if len(args) > 1 else kwargs["timestep"]))

    pipe.unet.register_forward_hook(listen, with_kwargs=True)
    run_svd(pipe, epd.summary(pipe).depth)
    levels = []
    for here, there in zip(table.sigmas[:-1], table.sigmas[1:], strict=True):
        levels += [here, *(there**r * here ** (1 - r) for r in (0.3, 0.7))]
    assert told == pytest.approx([math.log(float(level)) / 4 for level in levels], rel=1e-5, abs=1e-5)


def test_its_range_is_the_one_that_it_says() -> None:
    frame = frame_of(EulerDiscreteScheduler(**PUBLISHED))
    assert (frame.path, frame.sigma_min, frame.sigma_max, frame.alphas_cumprod) == ("ve", 0.002, 700.0, None)
    trained = frame_of(EulerDiscreteScheduler(**{**PUBLISHED, "sigma_min": None, "sigma_max": None}))
    assert trained.sigma_max == pytest.approx(14.6146, rel=1e-4)
    discrete = frame_of(EulerDiscreteScheduler(timestep_type="continuous"))  # of noise: the stock class ignores it
    assert discrete.alphas_cumprod is not None
