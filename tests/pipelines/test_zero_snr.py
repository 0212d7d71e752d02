"""Zero terminal SNR: the timestep where the state is noise alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.recording import normal
from helpers.tiny_pipelines import diffusers
from torch import Tensor

from epd.pipelines.grids import noise_level
from epd.pipelines.scheduler import EPDScheduler

SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO: dict[str, Any] = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}


def network(latents: Tensor, timestep: Tensor) -> Tensor:
    """Any smooth function of what a network sees."""
    return torch.tanh(0.7 * latents - 0.2) + 0.3 * torch.cos(timestep / 300)


def sampled(scheduler: Any, noise: Tensor) -> Tensor:  # noqa: ANN401
    latents = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(latents, t)
        latents = scheduler.step(network(seen, t), t, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("betas", [SD, {}], ids=["scaled_linear", "linear"])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_5_12_zero_snr_is_stock_ddim(betas: dict[str, Any], prediction: str) -> None:
    config = {**betas, **ZERO, "prediction_type": prediction}
    stock = diffusers.DDIMScheduler(**config, timestep_spacing="trailing", clip_sample=False)
    own = EPDScheduler.from_config(stock.config)
    noise = normal(2, 3, 4, 4)
    for scheduler in (stock, own):
        scheduler.set_timesteps(10)
    assert own.timesteps[0] == stock.timesteps[0] == 999
    assert own.timesteps.tolist() == stock.timesteps.tolist()
    torch.testing.assert_close(sampled(own, noise), sampled(stock, noise), rtol=0, atol=5e-4)


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_5_12_zero_snr_tells_999_whatever_the_stock_class(kind: str) -> None:
    for betas in (SD, {}):
        stock = getattr(diffusers, kind)(**betas, **ZERO, timestep_spacing="trailing")
        own = EPDScheduler.from_config(stock.config)
        stock.set_timesteps(5)
        own.set_timesteps(5)
        assert own.timesteps.tolist() == stock.timesteps.tolist() == [999, 799, 599, 399, 199]
        assert own.sigmas[0] == pytest.approx(4096, rel=1e-6) if betas else own.sigmas[0] > 4096


def test_5_12_own_timesteps_keep_999() -> None:
    own = EPDScheduler.from_config(diffusers.DDIMScheduler(**SD, **ZERO).config)
    own.set_timesteps(timesteps=[999, 500, 1])
    assert own.timesteps.tolist() == [999, 500, 1]
    levels = noise_level(own.frame, torch.tensor([998.0, 999.0]))
    assert levels[0] == pytest.approx(2254.194, rel=1e-4)
    assert levels[1] == pytest.approx(4096, rel=1e-6)
    clean, noise = normal(1, 2, 2), normal(1, 2, 2, seed=1)
    torch.testing.assert_close(own.add_noise(clean, noise, torch.tensor([999])), noise, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler", "CogVideoXDDIMScheduler"])
def test_5_12_epsilon_with_zero_snr_is_refused(kind: str) -> None:
    stock = getattr(diffusers, kind)(rescale_betas_zero_snr=True, prediction_type="epsilon")
    with pytest.raises(ValueError, match="prediction_type = 'epsilon' with zero terminal SNR"):
        EPDScheduler.from_config(stock.config)
    with pytest.raises(ValueError, match="prediction_type = 'epsilon' with zero terminal SNR"):
        EPDScheduler(rescale_betas_zero_snr=True).set_timesteps(4)
    betas = torch.linspace(1e-4, 0.02, 100).tolist()
    with pytest.raises(ValueError, match="prediction_type = 'epsilon' with zero terminal SNR"):
        EPDScheduler(num_train_timesteps=100, trained_betas=[*betas[:-1], 1.0]).set_timesteps(4)
