"""What a pipeline's results depend on, and the sizes of its states and pictures: read off without evaluating it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..denoisers.fingerprint import Dependencies
from .conditions import Request


def dependencies(
    pipe: Any,  # noqa: ANN401 - any pipeline of diffusers
    request: Request,
    index: Sequence[int],
    settings: Mapping[str, object],
) -> Dependencies | None:
    """Every network of the pipeline, text encoders included, and what it is asked for these conditions; None where
    that holds an object that is neither a tensor nor plain data, such as a control image.
    """
    arguments = dataclasses.replace(request, listed=False).arguments(index)
    rows = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in arguments.items() if name not in rows}
    try:
        json.dumps(plain)
    except (TypeError, ValueError):
        return None
    networks = tuple(part for part in pipe.components.values() if isinstance(part, nn.Module))
    return Dependencies(networks, rows, {**settings, "arguments": plain})


def resolution(pipe: Any, request: Request, shape: Sequence[int]) -> tuple[int, ...]:  # noqa: ANN401
    """Height and width in pixels of a sample; empty where the pipeline does not say how much smaller its states are.

    Args:
        shape: of a state, height and width last.
    """
    sides = [request.shared.get(side) for side in ("height", "width")]
    if all(sides):
        return tuple(int(side) for side in sides)
    own = vars(pipe)
    factor = own.get("vae_scale_factor") or own.get("vae_scale_factor_spatial")
    if factor is None and pipe.components.get("vae") is not None:
        return ()
    return tuple(int(side) * int(factor or 1) for side in shape[-2:])
