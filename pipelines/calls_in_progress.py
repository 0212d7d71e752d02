"""Whose call is under way. Diffusers offers no hook around a pipeline's call, but the stack of this thread knows it.

Everything else that could tell (a flag set when a run begins, the last tensor handed out) outlives a run that ends by
an exception or is seen by other threads; a frame does neither.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from diffusers.modular_pipelines.modular_pipeline import ModularPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

LIBRARIES = ("torch", "diffusers", "accelerate", "peft")
LATENTS = ("latents", "image")


@dataclass(frozen=True)
class PipelineCall:
    """The innermost call of a pipeline that this thread is in.

    Args:
        pipe: whose call it is.
        number: tells this call from every other one that has not ended.
        direct: what runs now was started by the pipeline itself, not by a callback that it was handed.
        frame: that runs it.
    """

    pipe: Any
    number: int
    direct: bool
    frame: FrameType

    def arguments(self) -> Mapping[str, Any]:
        """What it was called with, defaults included, under the names of its parameters."""
        code, values = self.frame.f_code, self.frame.f_locals
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        return {name: values[name] for name in names if name in values}

    def latents(self) -> Tensor | None:
        """What it holds between its network calls, under the name that pipelines give it; None under another name."""
        held = (self.frame.f_locals.get(name) for name in LATENTS)
        return next((value for value in held if isinstance(value, Tensor)), None)


def pipeline_call() -> PipelineCall | None:
    """The pipeline's call that led here, None outside of any."""
    below, frame = None, sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "__call__" and frame.f_code.co_argcount:
            owner = frame.f_locals.get(frame.f_code.co_varnames[0])
            if isinstance(owner, (DiffusionPipeline, ModularPipeline)):
                return PipelineCall(owner, id(frame), below is None or _is_own(below, type(owner)), frame)
        below, frame = frame, frame.f_back
    return None


def _is_own(below: FrameType, kind: type) -> bool:
    """Whether a function that a pipeline's call runs is its own or a library's, and not one of its caller's."""
    module = str(below.f_globals.get("__name__"))
    library = module.partition(".")[0] in LIBRARIES and module != "diffusers.callbacks"
    return library or any(module == base.__module__ for base in kind.__mro__)
