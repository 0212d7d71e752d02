"""What is asked of a pipeline: the arguments of its call, and those of them that belong to single samples."""

from __future__ import annotations

import inspect
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
    """

    shared: Mapping[str, Any]
    texts: tuple[str, ...] = ()
    negative: str | None = None
    labels: tuple[int, ...] = ()
    embeds: Mapping[str, Tensor] = field(default_factory=dict)
    counted: bool = False

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
            out[name] = value[torch.tensor(list(index), device=value.device)]
        return out


def known_arguments(pipe: Any) -> dict[str, inspect.Parameter]:  # noqa: ANN401 - any pipeline of diffusers
    """The named arguments of the pipeline's call."""
    return dict(inspect.signature(type(pipe).__call__).parameters)


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
    known = known_arguments(pipe)
    texts = None if prompts is None else tuple(prompts)
    asked = {"prompt": texts, "negative_prompt": negative_prompt, "class_labels": class_labels}
    asked = {name: value for name, value in asked.items() if value is not None} | dict(shared) | dict(embeds or {})
    unknown = [name for name in asked if name not in known]
    if unknown:
        usual = [name for name in known if name not in ("self", "args", "kwargs")]
        raise ValueError(f"{type(pipe).__name__} takes no {unknown[0]!r}; it takes {', '.join(usual)}")
    if texts == () or (class_labels is not None and len(class_labels) == 0):
        raise ValueError("the list of prompts or class labels is empty: give at least one")
    if embeds and (texts or negative_prompt):
        raise ValueError("prompts and embeds are both given: embeds replace the prompts, negative ones too")
    if embeds:
        return Request(shared, negative=None, embeds=_same_rows(embeds))
    if "class_labels" in known:
        return Request(
            shared, labels=tuple(int(label) for label in (class_labels if class_labels is not None else [0]))
        )
    if "prompt" in known:
        return Request(shared, texts=("",) if texts is None else texts, negative=negative_prompt)
    if "batch_size" in known:
        return Request(shared, counted=True)
    raise ValueError(f"{type(pipe).__name__} takes neither prompt, class_labels nor batch_size: give embeds=")


def _same_rows(embeds: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    counts = {name: len(value) for name, value in embeds.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"embeds must have the same number of rows under every name, got {counts}")
    return dict(embeds)
