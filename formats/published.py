r"""Published EPD tables: the raw numbers of a `.pkl` or `.npz`, and the effective ones that the solver uses.

    nodes       = sigmoid(r_params)
    weights     = softmax(weight_s) over the points
    slope_scale = 2 sigmoid(scale_dir_params / 2) scale_dir + 1 - scale_dir      (1 where scale_dir = 0)
    sigma_scale = 2 sigmoid(scale_time_params / 2) scale_time + 1 - scale_time   (1 where scale_time = 0)

and with `fcn` slope_scale = 1 in the last step. Reference: arXiv 2507.14797, Sec. 3, and arXiv 2512.22796.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import published_npz, published_pickle
from .files import read_bytes
from .pickle_machine import PublishedTableError, fault, shown
from .published_contents import JSON, RAW, Contents

__all__ = ["JSON", "PLUGIN", "Published", "PublishedTableError", "read_published"]

Array: TypeAlias = NDArray[np.float64]

MAX_FILE = 64 * 2**20  # published files have 7 to 410 kB
PLUGIN = "ipndm"  # `sampler_stu` of a table whose look-ahead is Adams-Bashforth's
MAX_SCALE = 100.0  # published: 0 to 0.2
REMEDY = "nothing in it was executed. Get the original file again, or convert it with the program that wrote it"


@dataclass(frozen=True, eq=False)
class Published:
    """A published table of N steps and K points.

    Args:
        nodes: (N, K) in [0, 1], float64 like all effective values, computed from the raw ones widened first.
        weights: (N, K) >= 0, each row sums to 1.
        slope_scale: (N, K).
        sigma_scale: (N, K).
        raw: `r_params`, `weight_s`, `scale_dir_params`, `scale_time_params` (N, K) as stored; empty for an archive of
            effective values.
        metadata: every plain attribute, `_init_kwargs`, `class_name`, `module_src` as its sha1 and length, and the
            plain values of `loss_fn` (tensors as their shape, `t_steps` as a list).
        sigmas: (N+1,) noise levels where the file holds them (`t_steps` of `loss_fn`, or `sigmas`).
    """

    nodes: Array
    weights: Array
    slope_scale: Array
    sigma_scale: Array
    raw: dict[str, NDArray[Any]]
    metadata: dict[str, JSON]
    sigmas: Array | None = None


def read_published(path: str | os.PathLike[str]) -> Published:
    """Reads a published `.pkl`, or a `.npz` of the same numbers, without executing or importing anything it names.

    What the file is, its content decides. An archive with `r_params` holds raw values: the four raw names (the scale
    parameters may be missing where unused), with `scale_dir`, `scale_time`, `fcn` as scalars or in `metadata`. Any
    other archive holds effective values: `nodes` (or `r`), `weights` (`weight`), and, where they are not 1,
    `slope_scale` (`scale_dir`) and `sigma_scale` (`scale_time`). Both kinds may hold `sigmas`, scalars, and `metadata`,
    a JSON object as text.

    Raises:
        PublishedTableError: for any other file; it says what was found and what is allowed.
    """
    data = read_bytes(Path(path), PublishedTableError, MAX_FILE)
    try:
        if data[:2] == b"PK":
            return _published(published_npz.contents(published_npz.load(data)))
        return _published(published_pickle.contents(published_pickle.load(data)))
    except PublishedTableError as error:
        raise PublishedTableError(f"{path} is no published table: {error}; {REMEDY}") from error


def _published(contents: Contents) -> Published:
    effective = _effective(contents.raw, contents.metadata) if contents.raw else dict(contents.effective)
    missing = [name for name in ("nodes", "weights") if name not in effective]
    if missing:
        raise fault(f"no {missing[0]}", "nodes and weights, or r_params and weight_s")
    shape = _shape(effective["nodes"], {} if contents.raw else contents.metadata)
    for name in ("slope_scale", "sigma_scale"):
        effective.setdefault(name, np.ones(shape))
    for name, value in effective.items():
        _require(name, value, shape)
    sigmas = contents.sigmas
    if sigmas is not None:
        _require("sigmas", sigmas, (shape[0] + 1,))
        sigmas = sigmas.astype(np.float64)
    values = {name: value.astype(np.float64) for name, value in effective.items()}
    return Published(**values, raw=contents.raw, metadata=contents.metadata, sigmas=sigmas)


def _require(name: str, value: NDArray[Any], shape: tuple[int, ...]) -> None:
    if value.shape != shape or 0 in shape or len(shape) > 2:
        raise fault(f"{name} of shape {value.shape}", f"{shape}, the shape that the other entries ask for")
    if not np.isfinite(value).all():
        raise fault(f"{name} with NaN or infinity", "finite numbers")


def _effective(raw: dict[str, NDArray[Any]], metadata: dict[str, JSON]) -> dict[str, Array]:
    if "weight_s" not in raw:
        raise fault("r_params without weight_s", f"{', '.join(RAW)}")
    shape = _shape(raw["r_params"], metadata)
    for name, value in raw.items():
        _require(name, value, shape)
    wide = {name: value.astype(np.float64) for name, value in raw.items()}  # before any formula, so that nothing rounds
    with np.errstate(over="ignore"):  # a weight that is far below the others is 0
        weights = np.exp(wide["weight_s"] - wide["weight_s"].max(axis=1, keepdims=True))
    out = {"nodes": _sigmoid(wide["r_params"]), "weights": weights / weights.sum(axis=1, keepdims=True)}
    out["slope_scale"] = _scale("scale_dir", wide, metadata)
    out["sigma_scale"] = _scale("scale_time", wide, metadata)
    fcn = metadata.get("fcn", False)
    if type(fcn) is not bool:
        raise fault(f"fcn = {shown(fcn)}", "True or False")
    if fcn:
        out["slope_scale"][-1] = 1.0
    return out


def _shape(nodes: NDArray[Any], metadata: dict[str, JSON]) -> tuple[int, int]:
    """(num_steps - 1, num_points): `num_steps` counts the points in time."""
    if nodes.ndim != 2:
        raise fault(f"nodes of shape {nodes.shape}", "(steps, points)")
    rows, points = nodes.shape
    if type(metadata.get("num_steps", 0)) is not int or type(metadata.get("num_points", 0)) is not int:
        raise fault("num_steps or num_points that is no integer", f"{rows + 1} and {points}, as the nodes say")
    if metadata.get("num_steps", rows + 1) != rows + 1 or metadata.get("num_points", points) != points:
        counts = f"num_steps {metadata.get('num_steps')} and num_points {metadata.get('num_points')}"
        raise fault(f"{counts} with nodes of shape {nodes.shape}", "nodes (num_steps - 1, num_points)")
    return (rows, points)


def _scale(name: str, wide: dict[str, Array], metadata: dict[str, JSON]) -> Array:
    parameters = wide.get(f"{name}_params", np.zeros_like(wide["r_params"]))
    scale = metadata.get(name, None if parameters.any() else 0.0)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not abs(scale) <= MAX_SCALE:
        raise fault(f"{name} = {shown(scale)}", f"at most {MAX_SCALE:g} in size, and given if {name}_params are not 0")
    return 2 * _sigmoid(0.5 * parameters) * scale + 1 - scale if scale != 0 else np.ones_like(parameters)


def _sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1 + small)
