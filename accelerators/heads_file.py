"""A policy of accelerated sampling as a file: weights as safetensors, what they are made of and measured as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..formats.files import require_regular, user_path, write_atomically
from ..formats.json_text import parse_json
from .heads import Heads, Layout

KEY, MAX_BYTES = "heads", 2**28
REMEDY = "give the policy.safetensors, or the folder, of a run of `epd refine-acceleration`"


@dataclass(frozen=True)
class Learned:
    """What a policy was learned for, and what it came to.

    Args:
        model: name.
        sigmas: (N+1,) noise levels of the solver's grid.
        metrics: numbers by name, on held-out samples.
    """

    model: str
    sigmas: tuple[float, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)


def save_heads(path: Path | str, heads: Heads, learned: Learned) -> None:
    """Writes weights, layout and what was learned, exact, atomically: the old file stays whole until the new one is.

    Raises:
        OSError: (a full disk, no permission) with the old file intact.
    """
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in heads.state_dict().items()}
    told = {"layout": asdict(heads.layout), "learned": asdict(learned)}
    write_atomically(Path(path), save(tensors, {KEY: json.dumps(told)}))


def load_heads(path: Path | str) -> tuple[Heads, Learned]:
    """What `save_heads` wrote, to the same bits, frozen; nothing in it is executed.

    Raises:
        ValueError: for any other file, naming it, the fault and the remedy.
    """
    path = user_path(path)
    require_regular(path, ValueError, MAX_BYTES)
    try:
        with safe_open(path, framework="pt") as file:
            told = _mapping(parse_json((file.metadata() or {})[KEY], ValueError, "its text"), "its text")
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
        layout = _layout(_mapping(told["layout"], "layout"))
        learned = _learned(_mapping(told["learned"], "learned"), layout.steps)
        for name, value in tensors.items():
            if value.dtype != torch.float32 or not bool(value.isfinite().all()):
                raise ValueError(f"{name} holds what is no finite number of 32 bits")
        held = sum(value.numel() for value in tensors.values())
        if 4 * layout.width**2 > held:  # no file makes us allocate more than it holds
            raise ValueError(f"width = {layout.width} does not fit its {held} weights")
        if 9 * 2 * layout.channels * layout.width > held:
            raise ValueError(f"channels = {layout.channels} does not fit its {held} weights")
        heads = Heads(layout)
        heads.load_state_dict(tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
        problem = f"no {error} in it" if type(error) is KeyError else str(error)
        raise ValueError(f"{path} holds no policy that works here ({problem[:200]}): {REMEDY}") from error
    return heads.requires_grad_(False).eval(), learned


def _mapping(value: Any, what: str) -> dict[str, Any]:  # noqa: ANN401 - out of JSON
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {value!r}"[:100] + ", no mapping")
    return value


def _number(value: Any, what: str) -> float:  # noqa: ANN401
    if type(value) not in (int, float) or not abs(value) < float("inf"):
        raise ValueError(f"{what} = {value!r} is no finite number"[:100])
    return float(value)


def _layout(told: dict[str, Any]) -> Layout:
    names = {f.name for f in fields(Layout)}
    if set(told) != names:
        raise ValueError(f"its layout has {', '.join(sorted(told))}"[:100] + f"; needed are {', '.join(sorted(names))}")
    values = dict(told)
    for name in ("heads", "levels", "costs"):
        if not isinstance(values[name], list):
            raise ValueError(f"{name} = {values[name]!r}"[:100] + " is no list")
    if not all(isinstance(head, str) for head in values["heads"]):
        raise ValueError(f"heads = {values['heads']!r}"[:100] + " are no names")
    for name in ("levels", "costs"):
        values[name] = tuple(_number(value, name) for value in values[name])
    for name in ("sharpness", "explored"):
        values[name] = _number(values[name], name)
    return Layout(**{**values, "heads": tuple(values["heads"])})


def _learned(told: dict[str, Any], steps: int) -> Learned:
    sigmas = told["sigmas"]
    if not isinstance(sigmas, list) or len(sigmas) != steps + 1:
        raise ValueError(f"sigmas are not the {steps + 1} noise levels of {steps} steps")
    levels = tuple(_number(value, "sigmas") for value in sigmas)
    if not all(a > b for a, b in zip(levels[:-1], levels[1:], strict=True)) or levels[-1] < 0:
        raise ValueError("sigmas do not decrease")
    if not isinstance(told["model"], str):
        raise ValueError(f"model = {told['model']!r}"[:100] + " is no name")
    metrics = {name: _number(value, name) for name, value in _mapping(told["metrics"], "metrics").items()}
    return Learned(told["model"], levels, metrics)
