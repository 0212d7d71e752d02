"""How the ten families are asked for a small picture, by us and by their users."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import epd
from epd.denoisers.noise import unit_noise
from epd.denoisers.timesteps import Timesteps
from epd.pipelines.denoiser import PipelineModel, from_pipeline

PROMPTS = ("a red fox", "snow in snow", "fox")
LABELS = (0, 5, 7)
SEEDS = (3, 4)
PIXELS: dict[str, Any] = {"height": 64, "width": 64}
SHORT: dict[str, Any] = {"max_sequence_length": 16}
PLAIN: dict[str, Any] = {"clean_caption": False}


@dataclass(frozen=True)
class Family:
    """How a pipeline is asked for a small picture, by us and by its users."""

    size: dict[str, Any] = field(default_factory=lambda: dict(PIXELS))
    options: dict[str, Any] = field(default_factory=dict)
    condition: str = "prompts"

    def model(self, pipe: Any, guidance: float | None, **changes: Any) -> PipelineModel:  # noqa: ANN401
        conditions: dict[str, Any] = {"prompts": {"prompts": PROMPTS}, "class_labels": {"class_labels": LABELS}}.get(
            self.condition, {}
        )
        return from_pipeline(pipe, guidance=guidance, options=self.options, **self.size, **conditions, **changes)

    def call(self, seeds: Sequence[int], steps: int, guidance: float | None) -> dict[str, Any]:
        out: dict[str, Any] = {**self.size, **self.options, "num_inference_steps": steps, "return_dict": False}
        out["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        if guidance is not None:
            out["guidance_scale"] = guidance
        if self.condition == "prompts":
            return {**out, "prompt": [PROMPTS[seed % 3] for seed in seeds], "output_type": "latent"}
        if self.condition == "class_labels":
            return {**out, "class_labels": [LABELS[seed % 3] for seed in seeds], "output_type": "np"}
        return {**out, "batch_size": len(seeds), "output_type": "np"}


FAMILIES = {
    "sd": Family(),
    "sdxl": Family(),
    "sd3": Family(options=SHORT),
    "flux": Family(options=SHORT),
    "pixart": Family(options={**SHORT, **PLAIN, "use_resolution_binning": False}),
    "dit": Family({}, condition="class_labels"),
    "ddpm": Family({}, condition="none"),
    "animatediff": Family({**PIXELS, "num_frames": 4}),
    "lumina": Family(options={**SHORT, **PLAIN}),
    "wan": Family({"height": 16, "width": 16, "num_frames": 5}, SHORT),
}


def own_entries(config: Any, kind: type) -> dict[str, Any]:  # noqa: ANN401 - diffusers' frozen dictionary
    """The entries of another scheduler's configuration that this class has."""
    known = inspect.signature(kind.__init__).parameters
    return {name: value for name, value in config.items() if name in known}


def stock_euler(pipe: Any, steps: int, alphas_cumprod: Tensor | None) -> tuple[Tensor, float]:  # noqa: ANN401
    """Gives the pipeline a first-order scheduler; its sigmas, and its start state over noise * sigmas[0]."""
    if alphas_cumprod is None:
        return torch.empty(0), 1.0  # rectified flow: the stock one is Euler; its sigmas are known after the run
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    changes = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False, "thresholding": False}
    pipe.scheduler = DDIMScheduler(**{**own_entries(pipe.scheduler.config, DDIMScheduler), **changes})
    pipe.scheduler.set_timesteps(steps)
    sigmas = Timesteps(alphas_cumprod).sigma(pipe.scheduler.timesteps)
    return torch.cat([sigmas, sigmas.new_zeros(1)]), float((1 + sigmas[0] ** 2).sqrt() / sigmas[0])


def both_ways(
    pipe: Any,  # noqa: ANN401
    family: Family,
    model: PipelineModel,
    guidance: float | None,
    **changes: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor]:
    """(solved by us, made by the pipeline), of latents or, where it does not give those, of pictures."""
    sigmas, start = stock_euler(pipe, 4, model.alphas_cumprod)
    made = torch.as_tensor(pipe(**{**family.call(SEEDS, 4, guidance), **changes})[0])
    if model.path == "flow":
        sigmas = pipe.scheduler.sigmas.double()
    noise = (unit_noise(SEEDS, model.shape).double() * start).float()
    with torch.no_grad():
        solved = epd.solve(epd.rules.euler(), model.for_seeds(SEEDS), noise, sigmas)
    if family.condition != "prompts":
        return model.decode(solved), made.permute(0, 3, 1, 2)
    return solved, made if model.packing is None else model.packing.unpack(made)


def assert_same(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    """To a fraction of the largest value: states of untrained networks reach hundreds."""
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.abs().max()))
