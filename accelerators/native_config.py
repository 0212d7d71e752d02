"""The configurations of diffusers' caches as texts, and back."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import diffusers.hooks
import torch
from diffusers.hooks.mag_cache import nearest_interp

CLOCK = "current_timestep_callback"  # ours
FUNCTION = "a function"
# Its class -> what applies it.
CONFIGS = {
    "FasterCacheConfig": "apply_faster_cache",
    "FirstBlockCacheConfig": "apply_first_block_cache",
    "MagCacheConfig": "apply_mag_cache",
    "PyramidAttentionBroadcastConfig": "apply_pyramid_attention_broadcast",
    "SeaCacheConfig": "apply_sea_cache",
    "TaylorSeerCacheConfig": "apply_taylorseer_cache",
    "TextKVCacheConfig": "apply_text_kv_cache",
}


def config_of(cache: str, settings: Sequence[str], given: Any = None) -> Any:  # noqa: ANN401
    """A configuration of its own, that of these texts; the functions of the given one.

    Raises:
        ValueError: for a name that is none, or where a function is missing.
    """
    known = _class(cache)
    fields, values = {field.name for field in dataclasses.fields(known)}, {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or name not in fields:
            raise ValueError(f"{cache} has no setting {text!r}: give name=value of {', '.join(sorted(fields))}")
        if value == FUNCTION:
            if given is None:
                raise ValueError(f"{cache}: {name} was a function, which no file can hold: give Native({cache}(...))")
            continue
        values[name] = _value(name, value)
    if given is not None:
        return copy.copy(given)
    try:
        return known(**values)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{cache} takes no {', '.join(settings)}: {error}") from error


def texts_of(config: Any) -> tuple[str, ...]:  # noqa: ANN401
    """`name=value` of what is not at its default, without the clock."""
    _class(type(config).__name__)
    out = []
    for field in dataclasses.fields(config):
        value = vars(config)[field.name]
        if field.name != CLOCK and not _same(value, field.default):
            out.append(f"{field.name}={_text(value)}")
    return tuple(out)


def retimed(config: Any, steps: int) -> None:  # noqa: ANN401
    """Writes the run's number of steps into a configuration that holds one."""
    values = vars(config)
    if "num_inference_steps" not in values or values["num_inference_steps"] == steps:
        return
    values["num_inference_steps"] = steps
    if values["mag_ratios"] is not None and not values["calibrate"]:
        values["mag_ratios"] = nearest_interp(values["mag_ratios"], steps)


def _class(name: str) -> Any:  # noqa: ANN401
    if name not in CONFIGS or name not in dir(diffusers.hooks):
        raise ValueError(f"{name} is no cache of diffusers: give a configuration, {', '.join(CONFIGS)}")
    return getattr(diffusers.hooks, name)


def _same(value: Any, default: Any) -> bool:  # noqa: ANN401
    return not isinstance(value, torch.Tensor) and value == default


def _text(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return ";".join(map(_text, value)) + ";" * (len(value) == 1)
    return FUNCTION if callable(value) else value if isinstance(value, str) else json.dumps(value)


def _value(name: str, text: str) -> Any:  # noqa: ANN401
    if ";" in text:
        return [_value(name, part) for part in text.removesuffix(";").split(";")]
    if name.endswith("dtype"):
        found = vars(torch).get(text)
        if not isinstance(found, torch.dtype) and text != "null":
            raise ValueError(f"{name} = {text!r} is no type of numbers: give float32 or bfloat16")
        return found
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
