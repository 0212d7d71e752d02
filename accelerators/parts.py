"""Parts of a video's features: ranges of rows, and tiles of pixels with all their frames."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def ranges(count: int, most: int) -> list[slice]:
    """0 ... count in the fewest ranges of at most so many, as equal as can be."""
    parts = max(1, -(-count // most))
    bounds = [count * i // parts for i in range(parts + 1)]
    return [slice(start, stop) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]


def tiles(samples: int, pixels: int, most: int) -> list[tuple[slice, slice]]:
    """(samples, pixels) of each part, with at most so many (sample, pixel) pairs: whole samples where they fit."""
    if most >= pixels:
        return [(own, slice(0, pixels)) for own in ranges(samples, most // pixels)]
    return [(slice(b, b + 1), part) for b in range(samples) for part in ranges(pixels, most)]


def chosen(value: Any, rows: int, part: slice) -> Any:  # noqa: ANN401 - whatever a module takes
    """This part of every tensor that has so many rows; everything else as it is."""
    if isinstance(value, Tensor):
        return value[part] if value.ndim and len(value) == rows else value
    if isinstance(value, dict):
        return {name: chosen(own, rows, part) for name, own in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(chosen(own, rows, part) for own in value)
    return value
