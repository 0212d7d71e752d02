"""What a foreign table file holds, before any formula: arrays, and metadata as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .pickle_machine import Inert, Name, fault, shown

JSON: TypeAlias = dict[str, "JSON"] | list["JSON"] | str | int | float | bool | None

# Of metadata. Text counts by its length, because one string can stand in many places.
MAX_DEPTH, MAX_VALUES, MAX_CHARACTERS = 16, 20_000, 2**20
RAW = ("r_params", "weight_s", "scale_dir_params", "scale_time_params")


class Contents(NamedTuple):
    """Raw parameters, or effective values by the field names of `Published`; the other one is empty."""

    raw: dict[str, NDArray[Any]]
    effective: dict[str, NDArray[Any]]
    metadata: dict[str, JSON]
    sigmas: NDArray[Any] | None


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A float32 tensor as a view that is proven to lie inside of its storage."""

    storage: NDArray[np.float32]
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def is_plain(self) -> bool:
        """Contiguous and the whole of its storage, as every published parameter is."""
        expected = tuple(math.prod(self.size[i + 1 :]) for i in range(len(self.size)))
        return self.offset == 0 and self.stride == expected and math.prod(self.size) == self.storage.size

    def array(self) -> NDArray[np.float32]:
        """A contiguous copy."""
        strides = tuple(4 * s for s in self.stride)
        view = np.ndarray(self.size, "<f4", self.storage.data, 4 * self.offset, strides)
        return np.array(view, np.float32, order="C")


def plain_values(values: Mapping[str, object]) -> dict[str, JSON]:
    """The JSON of plain values; tensors become their shape, functions and activations their name."""
    return _plain(dict(values), MAX_DEPTH + 1, _Budget())  # type: ignore[return-value] - a dictionary stays one


@dataclass
class _Budget:
    """What is left: lists that share lists, or text, can stand for more than the file holds."""

    values: int = MAX_VALUES
    characters: int = MAX_CHARACTERS

    def spend(self, value: object) -> None:
        self.values -= 1
        texts = [value] if isinstance(value, str) else value if isinstance(value, dict) else []
        self.characters -= sum(len(text) for text in texts)


def _plain(value: object, depth: int, left: _Budget) -> JSON:
    left.spend(value)
    if depth < 0 or left.values < 0 or left.characters < 0:
        allowed = f"{MAX_DEPTH} levels, {MAX_VALUES} values and {MAX_CHARACTERS} characters"
        raise fault("metadata too deep or too large", allowed)
    if isinstance(value, (Name, Inert)):
        return value.name if isinstance(value, Name) else value.cls.name
    if isinstance(value, StoredTensor):
        return {"shape": list(value.size)}
    if isinstance(value, dict):
        return {k: _plain(v, depth - 1, left) for k, v in value.items()}
    if isinstance(value, (list, tuple, frozenset)):
        return [_plain(v, depth - 1, left) for v in value]
    if value is None or isinstance(value, (str, bool, int)) or isinstance(value, float) and math.isfinite(value):
        return value
    raise fault(f"{shown(value)} in the metadata", "finite numbers, text, lists and dicts")
