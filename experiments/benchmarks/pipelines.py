"""A learned solver and stock schedulers at equal sequential calls in a diffusers pipeline: whole, and its network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from ...pipelines.enable import enable, summary
from ...solvers.graphs import MakeGraph
from ..bench_interleaved import network
from .networks import plain_table
from .timing import Machine, Settings, Times, bare, bound, recorded

Pipe = Any
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CALLS = 10
# Scheduler -> its steps of CALLS sequential calls; Heun's and DPM-Solver-2's last step is one call.
STOCK: dict[str, tuple[Callable[[], Any], int]] = {
    "Heun": (lambda: HeunDiscreteScheduler(**BETAS), CALLS // 2),
    "DPM-Solver-2": (lambda: KDPM2DiscreteScheduler(**BETAS), CALLS // 2),
    "DPM-Solver++(2M)": (lambda: DPMSolverMultistepScheduler(**BETAS), CALLS),
    "UniPC": (lambda: UniPCMultistepScheduler(**BETAS), CALLS),
}


def cells(settings: Settings) -> dict[str, Any]:
    """A cell for each size of pictures."""
    return {f"{size}-pixels": partial(measure, size) for size in settings.some((64, 256))}


def pipeline(unet: Any) -> Pipe:  # noqa: ANN401
    """Stable Diffusion's around this network, given encoded prompts, without a decoder."""
    parts: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    parts["scheduler"] = DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1)
    pipe = StableDiffusionPipeline(**parts, unet=unet, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_of(pipe: Pipe, steps: int, size: int, words: int = 3) -> Callable[[], Any]:
    """A picture with guidance, as latents."""
    device, dtype, width = pipe.unet.device, pipe.unet.dtype, pipe.unet.config.cross_attention_dim
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, words, width, generator=generator).to(device, dtype)
    latents = torch.randn(1, 4, size // 8, size // 8, generator=generator).to(device, dtype)

    def run() -> Any:  # noqa: ANN401
        return pipe(
            prompt_embeds=embeds, negative_prompt_embeds=-embeds, guidance_scale=3.0, output_type="latent",
            latents=latents, height=size, width=size, num_inference_steps=steps, return_dict=False,
        )[0]  # fmt: skip

    return run


def contenders(
    unet: Any, size: int, words: int = 3, graphs: bool | MakeGraph = False  # noqa: ANN401
) -> dict[str, Callable[[], Any]]:
    """Runs of pipelines that share a network, by solver."""
    found = {}
    for name, (scheduler, steps) in STOCK.items():
        pipe = pipeline(unet)
        pipe.scheduler = scheduler()
        found[name] = run_of(pipe, steps, size, words)
    pipe = pipeline(unet)
    enable(pipe, plain_table(CALLS // 2, 2, sigma_max=14.0), graphs=graphs)
    found["EPD, K = 2"] = run_of(pipe, summary(pipe).depth, size, words)
    return found


def measure(size: int, settings: Settings, machine: Machine) -> list[dict[str, Any]]:
    """A row for each solver."""
    unet: Any = network()
    unet.to(settings.device)
    runs = contenders(unet, size)
    with torch.no_grad():
        calls = {name: recorded(unet, run) for name, run in runs.items()}
    floors = {f"{name}'s calls": bare(unet, made) for name, made in calls.items()}
    times = Times({**runs, **floors}, settings)
    return [
        {
            "network": "small UNet", "pixels": size, "solver": name, "calls": len(calls[name]),
            **times.row(name, f"{name}'s calls"), "over_2m": times.ratio(name, "DPM-Solver++(2M)"),
            "bound_ms": bound(unet, calls[name], machine),
        }
        for name in runs
    ]  # fmt: skip

