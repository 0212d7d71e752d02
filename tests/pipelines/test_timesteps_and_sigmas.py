"""Pipelines that pass timesteps and sigmas together: CogView4 and GLM-Image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import tables
from helpers.cogview4 import COGVIEW, cogview4, texts
from helpers.tiny_pipelines import calls_of, diffusers
from torch import Tensor

import epd
from epd.pipelines.scheduler import EPDScheduler

MU = 0.6


def ramp(pipeline: str, n: int) -> dict[str, Any]:
    """As the two pipelines make it."""
    times = np.linspace(1000, 1.0, n) if pipeline == "cogview4" else np.linspace(1000, 1.0, n + 1)[:-1]
    times = times.astype(np.int64).astype(np.float32)
    return {"timesteps": times, "sigmas": times / 1000}


def unshifted(levels: Tensor, factor: float = MU) -> Tensor:
    return 1000 * levels / (levels + factor * (1 - levels))


@pytest.mark.parametrize("pipeline", ["cogview4", "glm_image"])
@pytest.mark.parametrize(
    "config", [COGVIEW, {**COGVIEW, "time_shift_type": "exponential"}, {"shift": 3.0}, {}], ids=lambda c: str(len(c))
)
def test_5_9_both_are_what_they_are_to_stock(pipeline: str, config: dict[str, Any]) -> None:
    stock = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    mu = {"mu": MU} if config.get("use_dynamic_shifting") else {}
    stock.set_timesteps(**ramp(pipeline, 6), **mu)
    own = EPDScheduler.from_config(stock.config)
    own.set_timesteps(**ramp(pipeline, 6), **mu)
    torch.testing.assert_close(own.sigmas, stock.sigmas, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(own.timesteps, stock.timesteps, rtol=1e-6, atol=2e-3)
    own.set_timesteps(6, **mu)  # the next run may ask otherwise
    torch.testing.assert_close(own.timesteps, 1000 * own.sigmas[:-1], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("rule", ["heun", "dpm2"])
def test_5_9_between_the_levels_the_told_time_is_unshifted_too(rule: str) -> None:
    own = EPDScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler(**COGVIEW).config, rule=rule)
    own.set_timesteps(**ramp("glm_image", 4), mu=MU)
    for call in own._required().calls:
        assert call.timestep[0] == pytest.approx(float(unshifted(torch.tensor(call.sigma[0]).double())), rel=1e-5)


@pytest.mark.parametrize("pipeline", ["cogview4", "glm_image"])
def test_5_9_a_table_keeps_its_sigmas_and_tells_unshifted_times(pipeline: str) -> None:
    sigmas = [1.0, 0.8, 0.5, 0.2, 0.02]
    table = epd.Table.from_dict({**tables.epd_table().to_dict(), "sigmas": sigmas})
    own = EPDScheduler.from_table(table, diffusers.FlowMatchEulerDiscreteScheduler(**COGVIEW).config)
    own.set_timesteps(16)  # calls, one after another
    plain = own._required()
    own.set_timesteps(**ramp(pipeline, 16), mu=MU)
    told = own._required()
    assert [c.sigma for c in told.calls] == [c.sigma for c in plain.calls]
    for ours, theirs in zip(told.calls, plain.calls, strict=True):
        at = torch.tensor(theirs.timestep, dtype=torch.float64) / 1000
        assert list(ours.timestep) == pytest.approx(unshifted(at).tolist(), rel=1e-9)
    with pytest.warns(UserWarning, match="num_inference_steps = 7, but the table has 4 steps"):
        own.set_timesteps(**ramp(pipeline, 7), mu=MU)
    own.set_timesteps(sigmas=sigmas[:-1], timesteps=[1000 * s for s in sigmas[:-1]], mu=MU)
    assert [c.timestep for c in own._required().calls] == [c.timestep for c in plain.calls]
    with pytest.raises(ValueError, match="not the table's own"):
        own.set_timesteps(sigmas=[1.0, 0.9, 0.1], timesteps=[1000.0, 900.0, 100.0], mu=MU)


def test_5_9_what_disagrees_or_cannot_be_told_is_refused() -> None:
    own = EPDScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler(**COGVIEW).config)
    both = ramp("cogview4", 5)
    with pytest.raises(ValueError, match="mu is None"):
        own.set_timesteps(**both)
    with pytest.raises(ValueError, match="give one of them"):
        own.set_timesteps(timesteps=both["timesteps"], sigmas=[1.0, 0.7, 0.4, 0.2, 0.1], mu=MU)
    karras = EPDScheduler.from_config(own.config, use_karras_sigmas=True)
    with pytest.raises(ValueError, match="use_karras_sigmas moves them apart"):
        karras.set_timesteps(**both, mu=MU)


def test_5_9_variance_preserving_ones_take_rounded_timesteps() -> None:
    own = EPDScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    sigmas = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152]
    own.set_timesteps(sigmas=sigmas)
    times = own.timesteps
    own.set_timesteps(sigmas=sigmas, timesteps=times.round().tolist())
    assert own.timesteps.tolist() == times.tolist()
    assert own.sigmas.tolist() == torch.tensor([*sigmas, 0.0]).tolist()


def pictured(pipe: Any, steps: int) -> Tensor:  # noqa: ANN401
    seed = torch.Generator().manual_seed(2)
    size = {"height": 16, "width": 16, "output_type": "latent"}
    return pipe(**texts(), **size, num_inference_steps=steps, guidance_scale=2.0, generator=seed).images


def test_5_9_cogview4_pipeline() -> None:
    pipe = cogview4()
    expected = pictured(pipe, 4)
    stock = pipe.scheduler
    pipe.scheduler = EPDScheduler.from_config(stock.config)
    torch.testing.assert_close(pictured(pipe, 4), expected, rtol=0, atol=1e-5)
    pipe.scheduler = stock
    sigmas = [1.0, 0.8, 0.5, 0.2, 0.02]
    table = epd.Table.from_dict({**tables.epd_table().to_dict(), "sigmas": sigmas})
    results = [pictured(epd.enable(pipe, table, parallel=parallel), calls_of(pipe)) for parallel in (True, False)]
    torch.testing.assert_close(*results, rtol=0, atol=1e-5)
