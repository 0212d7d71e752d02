"""Tables for the tiny pipelines, how two of their results are compared, and what a call of one is told."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import epd
from helpers import tables, tiny_pipelines
from helpers.tiny_pipelines import PROMPTS, build, calls_of, network

FLOW_SIGMAS, DIFFUSION_SIGMAS = [1.0, 0.8, 0.5, 0.2, 0.02], [14.0, 6.0, 2.0, 0.6, 0.05]
TABLES = {  # table, and rows per sample of each network call
    "epd": (tables.epd_table(), [1, 3] * 4),
    "plugin with afs": (tables.epd_table(afs=True, order=3), [3, 1, 3, 1, 3, 1, 3]),
    "memory": (tables.full_table(), [1, 2] * 4),
    "one-call with afs": (tables.full_table(calls=1, afs=True), [3] * 4),
    "mixed": (tables.full_table(calls=[1, 2, 1, 2]), [1, 1, 2, 3, 1, 2]),
    "dense": (tables.dense_table(0), [1, 1, 1]),
    "dense fan": (tables.dense_table(1), [2, 2, 2]),
}


def table_for(name: str, kind: str) -> epd.Table:
    sigmas = FLOW_SIGMAS if name in tiny_pipelines.FLOWS else DIFFUSION_SIGMAS
    table = dataclasses.replace(TABLES[kind][0], sigmas=sigmas)
    if table.calls[0]:
        return table
    # On either path the slope of a state that is noise alone is x / sigma.
    along = math.sqrt(1 + sigmas[0] ** 2) / sigmas[0]
    return dataclasses.replace(table, anchor=tables.changed(table, "anchor", (0,), along))


def states_and_rows(pipe: Any, name: str, steps: int, **changes: Any) -> tuple[Tensor, list[int]]:  # noqa: ANN401
    """The last state that the pipeline had, and the rows of its network calls."""
    rows: list[int] = []
    last: list[Tensor] = []

    def count(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state = kwargs.get("sample", kwargs.get("hidden_states"))
        rows.append(len(args[0] if state is None else state))

    inner = pipe.scheduler.step

    def step(
        model_output: Tensor, timestep: Tensor, sample: Tensor, generator: object = None, return_dict: bool = True
    ) -> Any:  # noqa: ANN401
        out = inner(model_output, timestep, sample, return_dict=return_dict)
        last.append(out[0])
        return out

    pipe.scheduler.step = step
    handle = tiny_pipelines.network(pipe).register_forward_pre_hook(count, with_kwargs=True)
    try:
        with torch.no_grad():
            number = tiny_pipelines.calls_of(pipe, steps)
            pipe(**{**tiny_pipelines.arguments(name, steps), **changes, "num_inference_steps": number})
    finally:
        handle.remove()
        del pipe.scheduler.step
    return last[-1], rows


def assert_same(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    """To a fraction of the largest value: states of untrained networks reach hundreds."""
    assert torch.isfinite(one).all()
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.abs().max()))


SMALL: dict[str, Any] = {"prompt": list(PROMPTS[:2]), "output_type": "latent", "return_dict": False}


def seeds() -> dict[str, Any]:
    return {"generator": [torch.Generator().manual_seed(i) for i in range(2)]}


def picture(channels: int = 3, seed: int = 3) -> Tensor:
    return torch.rand(2, channels, 64, 64, generator=torch.Generator().manual_seed(seed))


def both(pipe: Any, table: epd.Table, call: Callable[[int], Any]) -> tuple[Tensor, list[int]]:  # noqa: ANN401
    """The result with fans in one call, which is that with single calls; and the rows of the network's calls.

    `call` gets the number of steps that it passes to the pipeline.
    """
    rows: list[int] = []

    def count(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows.append(len(args[0] if args else kwargs["sample"]))

    results = []
    for parallel in (False, True):
        epd.enable(pipe, table, parallel=parallel)
        rows.clear()
        handle = network(pipe).register_forward_pre_hook(count, with_kwargs=True)
        with torch.no_grad():
            results.append(torch.as_tensor(call(calls_of(pipe))[0]))
        handle.remove()
    epd.disable(pipe)
    assert_same(results[1], results[0])
    return results[1], rows


def variant(kind: Any, **changes: Any) -> Any:  # noqa: ANN401
    """Another pipeline of Stable Diffusion's tiny components."""
    components = build("sd").components
    pipe = kind(**{**components, **changes}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
