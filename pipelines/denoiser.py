"""A Denoiser from any diffusers pipeline: what distillation, comparison and reinforcement learning evaluate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..denoisers.arguments import takes_lists
from ..denoisers.fingerprint import Dependencies
from ..denoisers.networks import noise_levels
from ..denoisers.protocol import Path, rows_per_condition
from .conditions import Request, call_parameters, request
from .dependencies import dependencies, resolution
from .first_call import encode, network_input, packing_of, require_followed, state_shape
from .frames import TIMES, Frame, Packing, frame_of
from .guidance import GuidanceScaling
from .probe import ProbeScheduler, Stage, borrowed, evaluate, stage
from .prompts import Encodings


@dataclass(frozen=True, eq=False)
class PipelineModel:
    """A `Model` in the latent space of a pipeline; made by `from_pipeline`.

    Every evaluation is the pipeline's own: it prepares its conditioning (prompts are encoded once, beforehand), calls
    its network, and combines guidance; only the state and the timesteps are ours. D = c_skip x + c_out F(c_in x).
    Calls have B x K rows, sample-major, for B bound samples. The state is in the frame x = noise * sigmas[0].

    Args:
        stage: the pipeline, where it computed when the model was made; unchanged between evaluations.
        frame: path and parameterisation.
        request: what is asked of the pipeline.
        shape: of one sample, as the pipeline draws its noise.
        time: which of TIMES its networks are told.
        dtype: of the network's input.
        packing: how the state becomes tokens, where it does.
        guidance: the scale that is asked for.
        name: what tables record.
        seed_conditions: the number of the condition that each seed stands for; none: s mod P.
    """

    stage: Stage
    frame: Frame
    request: Request
    shape: tuple[int, ...]
    time: str
    dtype: torch.dtype
    packing: Packing | None
    guidance: float
    name: str
    seed_conditions: Callable[[Sequence[int]], Sequence[int]] | None = None
    _encodings: Encodings | None = None
    _index: tuple[int, ...] | None = None  # condition of each bound sample
    _guiding: GuidanceScaling = field(default_factory=GuidanceScaling, repr=False)  # the same for all samples

    @property
    def path(self) -> Path:
        """`ve` (variance-preserving pipelines are divided by alpha) or `flow`."""
        return self.frame.path

    @property
    def prediction(self) -> str:
        """What the network predicts."""
        return self.frame.prediction

    @property
    def resolution(self) -> tuple[int, ...]:
        """Height and width in pixels; empty where unknown."""
        return resolution(self.pipe, self.request, self.shape)

    def depends_on(self) -> Dependencies | None:
        """All networks of the pipeline and what it is asked for; None where that cannot be told."""
        settings = {"guidance": self.guidance, "time": self.time, "dtype": str(self.dtype)}
        settings["prediction"] = self.prediction
        return dependencies(self.pipe, self.request, self._index or (0,), settings)

    @property
    def sigma_min(self) -> float:
        """Smallest trained noise level."""
        return self.frame.sigma_min

    @property
    def sigma_max(self) -> float:
        """Largest trained noise level."""
        return self.frame.sigma_max

    @property
    def alphas_cumprod(self) -> Tensor | None:
        """(T,) float64 of a variance-preserving pipeline: what `schedules.discrete` wants."""
        return self.frame.alphas_cumprod

    @property
    def device(self) -> str:
        """Where the pipeline computes."""
        return str(self.stage.device)

    @property
    def pipe(self) -> Any:  # noqa: ANN401
        """The pipeline; it must not be run by anybody else during an evaluation."""
        return self.stage.pipe

    def for_seeds(self, seeds: Sequence[int]) -> PipelineModel:
        """Bound to these samples, to the conditions that their seeds stand for."""
        return replace(self, _index=self._seed_index(seeds))

    def prompts_of(self, seeds: Sequence[int]) -> list[str]:
        """The prompt of each sample; empty texts where the pipeline was given none."""
        texts = self.request.texts or ("",) * self.request.count
        return [texts[i] for i in self._seed_index(seeds)]

    def _seed_index(self, seeds: Sequence[int]) -> tuple[int, ...]:
        if self.seed_conditions is not None:
            return tuple(self.seed_conditions(seeds))
        return tuple(int(seed) % self.request.count for seed in seeds)

    def _conditions(self, rows: int) -> list[int]:
        """Which condition each row of a call has. Unbound, every row has the first one."""
        if self._index is None:
            return [0] * rows
        repeat = rows_per_condition(rows, len(self._index))
        return [i for i in self._index for _ in range(repeat)]

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._denoised(x, sigma, None)

    def at_guidance(self, x: Tensor, sigma: Tensor, factor: Tensor) -> Tensor:
        """D with the pipeline's guidance scale times `factor`, 0-d or (B,).

        Raises:
            ValueError: where the pipeline does not guide by one call of both halves, combined linearly.
        """
        return self._denoised(x, sigma, factor.expand(len(x)))

    def _denoised(self, x: Tensor, sigma: Tensor, factors: Tensor | None) -> Tensor:
        sigma = noise_levels(x, sigma).expand(len(x))
        work = x.to(torch.promote_types(x.dtype, torch.float32))
        c_skip, c_out, c_in, timestep = (
            c.reshape(-1, *[1] * (x.ndim - 1)).to(work.dtype) if i < 3 else c
            for i, c in enumerate(self.frame.precondition(sigma))
        )
        output = self._output(c_in * work, timestep, factors)
        return (c_skip * work + c_out * output.to(work.dtype)).to(x.dtype)

    def _output(self, scaled: Tensor, timestep: Tensor, factors: Tensor | None) -> Tensor:
        """What the pipeline hands to its scheduler for these rows."""
        if not self.stage.two:
            return self._run(scaled, timestep, self._conditions(len(scaled)), factors)
        # Two networks share the work by timestep: the pipeline can ask only one of them at a time.
        index = self._conditions(len(scaled))
        output = torch.empty_like(scaled)
        for t in timestep.unique():
            part = (timestep == t).nonzero().flatten()
            chosen = [index[i] for i in part.tolist()]
            rows = self._run(scaled[part], timestep[part], chosen, None if factors is None else factors[part])
            output = output.index_copy(0, part, rows.to(scaled.dtype))
        return output

    def _run(self, scaled: Tensor, timestep: Tensor, index: list[int], factors: Tensor | None) -> Tensor:
        latents = scaled if self.packing is None else self.packing.pack(scaled)
        native = TIMES[self.time](timestep, self.frame.num_timesteps)

        def tap(sample: Tensor, stock: Tensor) -> tuple[Tensor, Tensor]:
            copies = len(sample) // len(latents)  # guidance by a doubled call: [all rows, all rows]
            rows = latents.to(sample.device, sample.dtype).repeat(copies, *[1] * (latents.ndim - 1))
            rows = rows.unsqueeze(2) if sample.ndim > rows.ndim else rows  # the frame of a list's entries
            if rows.shape[1] < sample.shape[1] and rows.ndim > 3:  # channels beside the state: masks, images
                rows = torch.cat([rows, sample[:, rows.shape[1] :]], dim=1)
            kind = stock.dtype if stock.is_floating_point() else torch.float32
            times = native.to(sample.device, kind).repeat(copies)
            return rows, times[:, None].expand(-1, stock.shape[1]) if stock.ndim == 2 else times

        scheduler = ProbeScheduler(self.pipe.scheduler, timestep[:1].to(self.device, torch.float32))
        guiding = self._guiding
        guiding.outputs.clear()  # of a call that failed
        hear = None if factors is None else guiding.hear
        output = evaluate(self.stage, self._arguments(index, latents), self._replaced(scheduler, index), tap, hear)
        if factors is not None:
            output = guiding.scaled(output, factors, latents.shape[1] if latents.ndim > 3 else output.shape[1])
        output = output[: len(latents)].to(scaled.device)  # a pipeline may step both halves of a doubled call
        output = output if self.packing is None else self.packing.unpack(output)
        return output[:, : scaled.shape[1]]  # learned variance

    def _replaced(self, scheduler: ProbeScheduler, index: Sequence[int]) -> dict[str, object]:
        """What stands in for the pipeline's own while it answers for these conditions."""
        if self._encodings is None:
            return {"scheduler": scheduler}
        return {"scheduler": scheduler, "encode_prompt": self._encodings.rows(index)}

    def _arguments(self, index: Sequence[int], latents: Tensor) -> dict[str, Any]:
        out = self.request.arguments(index)
        if "latents" in self.stage.parameters:  # else the pipeline would draw noise for nothing
            out["latents"] = latents.detach().to(self.device, self.dtype)
        if "generator" in self.stage.parameters:
            out["generator"] = torch.Generator().manual_seed(0)  # nor may it touch the global one
        return out

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [0, 1] of finished states, by the pipeline's own last lines; a video's frames lie
        side by side, (B, C, H, frames W).
        """
        if "latents" not in self.stage.parameters:
            vae = self.pipe.components.get("vae")
            if vae is not None:
                x = vae.decode(x.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample
            return (x / 2 + 0.5).clamp(0, 1).float()
        index = self._conditions(len(x))
        scheduler = ProbeScheduler(self.pipe.scheduler, torch.empty(0, device=self.device))
        latents = x if self.packing is None else self.packing.pack(x)
        arguments = {**self._arguments(index, latents), "output_type": "pt", "return_dict": False}
        with borrowed(self.pipe, self._replaced(scheduler, index), self.stage.device):
            pictures = self.pipe(**arguments)[0].float()
        return pictures if pictures.ndim == 4 else pictures.movedim(1, 3).flatten(3)


def from_pipeline(
    pipe: Any,  # noqa: ANN401 - any pipeline of diffusers
    prompts: Sequence[str] | None = None,
    negative_prompt: str | None = None,
    guidance: float | None = None,
    height: int | None = None,
    width: int | None = None,
    class_labels: Sequence[int] | None = None,
    num_frames: int | None = None,
    embeds: Mapping[str, Tensor] | None = None,
    options: Mapping[str, Any] | None = None,
    name: str = "",
) -> PipelineModel:
    """The pipeline as a `Model`: prompts encoded once by the pipeline itself, seed s bound to prompt s mod P.

    Its networks' parameters are frozen. A pipeline whose learned scheduler is enabled must be disabled first. Whether
    points are evaluated together is up to who solves it: `solve(..., answer=epd.auto())` and the like.

    Args:
        pipe: a text-to-image, text-to-video, class-conditional or unconditional pipeline.
        prompts: P texts; default one empty text.
        negative_prompt: for guidance; default the pipeline's.
        guidance: the call's `guidance_scale`; default the pipeline's. Its meaning is the pipeline's: embedded in FLUX.
        height, width: pixels; default the pipeline's.
        class_labels: P class numbers.
        num_frames: of a video.
        embeds: instead of prompts: precomputed embeddings by the names of the call's arguments, P rows each.
        options: any further arguments of the call, the same for every sample: `guidance_rescale`, `true_cfg_scale`,
            `max_sequence_length`, `clip_skip`, `ip_adapter_image_embeds`, a ControlNet's `image`, ... A model is
            evaluated at any noise level and outside of any run: options that depend on how far a run is (SD3's
            `skip_guidance_layers`, `cfg_trunc_ratio`, `control_guidance_end`), and those that are the solver's
            (`sigmas`, `eta`, `latents`), are refused by name.
        name: what tables record; default where the pipeline was loaded from.

    Raises:
        ValueError: for arguments that this pipeline does not take, or a pipeline that cannot be evaluated this way;
            it says why.
    """
    require_followed(pipe)
    named = {"height": height, "width": width, "num_frames": num_frames, "guidance_scale": guidance}
    shared = {**{key: value for key, value in named.items() if value is not None}, **(options or {})}
    call = request(pipe, prompts, negative_prompt, class_labels, embeds, shared)
    parameters = call_parameters(pipe)
    if "num_inference_steps" in parameters:
        call = replace(call, shared={**call.shared, "num_inference_steps": 1})
    setting = stage(pipe)
    call = replace(call, listed=any(takes_lists(network.forward) for network in setting.networks))
    for network in setting.networks:
        network.requires_grad_(False)
    frame = frame_of(pipe.scheduler)
    encodings = Encodings(lambda index: encode(setting, call, index), call.count) if call.texts else None
    sample, frame, time = network_input(setting, call, frame, encodings)
    packing = packing_of(pipe, sample, call)
    stock = parameters["guidance_scale"].default if "guidance_scale" in parameters else None
    scale = guidance if guidance is not None else 1.0 if stock is None else float(stock)
    shape = state_shape(pipe, sample) if packing is None else (sample.shape[2] // 4, packing.height, packing.width)
    title = name or str(pipe.config.get("_name_or_path") or type(pipe).__name__)
    return PipelineModel(
        setting, frame, call, shape, time, sample.dtype, packing, float(scale), title, _encodings=encodings
    )
