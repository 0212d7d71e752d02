"""What is asked of a pipeline: the arguments of its call, and those of them that belong to single samples."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Request:
    """Checked arguments for a pipeline's call.

    Args:
        shared: the same in every call.
        texts: P prompts, or none where the pipeline takes no text or embeddings are given.
        negative: negative prompt of every sample.
        labels: P class labels.
        embeds: precomputed embeddings, P rows each, by the names of the call's arguments.
        counted: the pipeline is told the number of samples and nothing else.
        listed: the pipeline takes embeddings as lists with one tensor per sample.
    """

    shared: Mapping[str, Any]
    texts: tuple[str, ...] = ()
    negative: str | None = None
    labels: tuple[int, ...] = ()
    embeds: Mapping[str, Tensor] = field(default_factory=dict)
    counted: bool = False
    listed: bool = False

    @property
    def count(self) -> int:
        """P, the number of conditions; a pipeline without any has one."""
        rows = next((len(value) for value in self.embeds.values()), 0)
        return len(self.texts) or len(self.labels) or rows or 1

    def arguments(self, index: Sequence[int]) -> dict[str, Any]:
        """The call for samples with these conditions."""
        out = dict(self.shared)
        if self.counted:
            out["batch_size"] = len(index)
        if self.labels:
            out["class_labels"] = [self.labels[i] for i in index]
        if self.texts:
            out["prompt"] = [self.texts[i] for i in index]
            if self.negative is not None:
                out["negative_prompt"] = [self.negative] * len(index)
        for name, value in self.embeds.items():
            rows = value[torch.tensor(list(index), device=value.device)]
            out[name] = list(rows.unbind()) if self.listed else rows
        return out


def call_parameters(pipe: Any) -> dict[str, inspect.Parameter]:  # noqa: ANN401 - any pipeline of diffusers
    """The named arguments of the pipeline's call."""
    return dict(inspect.signature(type(pipe).__call__).parameters)


# Options that guide by the time of a call, of which a fan has several; and the value without effect.
BY_TIME: Mapping[str, object] = {
    "pag_adaptive_scale": 0.0, "use_dynamic_cfg": False, "cfg_truncation": 1.0, "cfg_interval_start": 0.0,
    "cfg_interval_end": 1.0,
}  # fmt: skip
# Options that have an effect in a run only, and the value without one. A model is evaluated at any noise level and
# outside of any run. First those that depend on how far the run is; then on the time; then those that are the solver's.
OF_RUNS: Mapping[str, object] = {
    "skip_guidance_layers": None, "cfg_trunc_ratio": 1.0, "control_guidance_start": 0.0, "control_guidance_end": 1.0,
    "adapter_conditioning_factor": 1.0, "guidance_schedule": None,
    "denoising_start": None, "denoising_end": None, "ar_step": 0, "num_temporal_reasoning_steps": 0,
    "mixed_precision_first_steps": None, "mixed_precision_last_steps": None,
    "callback": None, "callback_on_step_end": None,
    **BY_TIME,
    "num_inference_steps": None, "timesteps": None, "sigmas": None, "latents": None, "generator": None, "eta": 0.0,
}  # fmt: skip


def require_no_run(parameters: Mapping[str, inspect.Parameter], options: Mapping[str, Any]) -> None:
    """Refuses options, and a pipeline's defaults of them, that would silently have no effect, or always the same.

    Raises:
        ValueError: naming the option.
    """
    for name, neutral in OF_RUNS.items():
        if name not in parameters or (name == "num_inference_steps" and name not in options):
            continue
        value = options.get(name, parameters[name].default)
        if has_effect(value, neutral):
            shown = " ".join(reprlib.repr(value).split())
            raise ValueError(
                f"{name} = {shown} has its effect in a run, but a model is evaluated at single noise levels: "
                f"{'leave it out' if neutral is None else f'give {neutral!r}'}"
            )


def has_effect(value: Any, neutral: object) -> bool:  # noqa: ANN401 - any option
    """Whether an option is at another value than the one that does nothing; None never does anything."""
    if neutral is None or value is None:
        return value is not None
    return any(v != neutral for v in (value if isinstance(value, (list, tuple)) else [value]))


def request(
    pipe: Any,  # noqa: ANN401
    prompts: Sequence[str] | None,
    negative_prompt: str | None,
    class_labels: Sequence[int] | None,
    embeds: Mapping[str, Tensor] | None,
    shared: Mapping[str, Any],
) -> Request:
    """Sorts out who is told what.

    Raises:
        ValueError: for an argument that this pipeline does not take, or no conditions at all.
    """
    parameters = call_parameters(pipe)
    texts = None if prompts is None else tuple(prompts)
    named = {"prompt": texts, "negative_prompt": negative_prompt, "class_labels": class_labels}
    arguments = {name: value for name, value in named.items() if value is not None} | dict(shared) | dict(embeds or {})
    unknown = [name for name in arguments if name not in parameters]
    if unknown:
        usual = [name for name in parameters if name not in ("self", "args", "kwargs")]
        raise ValueError(f"{type(pipe).__name__} takes no {unknown[0]!r}; it takes {', '.join(usual)}")
    require_no_run(parameters, shared)
    if texts == () or (class_labels is not None and len(class_labels) == 0):
        raise ValueError("the list of prompts or class labels is empty: give at least one")
    if embeds and (texts or negative_prompt):
        raise ValueError("prompts and embeds are both given: embeds replace the prompts, negative ones too")
    if embeds:
        return Request(shared, negative=None, embeds=_same_rows(embeds))
    if "class_labels" in parameters:
        return Request(
            shared, labels=tuple(int(label) for label in (class_labels if class_labels is not None else [0]))
        )
    if "prompt" in parameters:
        return Request(shared, texts=("",) if texts is None else texts, negative=negative_prompt)
    if "batch_size" in parameters:
        return Request(shared, counted=True)
    raise ValueError(f"{type(pipe).__name__} takes neither prompt, class_labels nor batch_size: give embeds=")


def _same_rows(embeds: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    counts = {name: len(value) for name, value in embeds.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"embeds must have the same number of rows under every name, got {counts}")
    return dict(embeds)
