"""CUDA graphs and compilation: a trajectory run eagerly, from a graph for each step, from one, and compiled."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ...solvers.capture import capture
from ...solvers.graphs import MakeGraph
from ...solvers.solve import solve
from .networks import Subject, plain_table, subject
from .timing import Machine, Settings, Times, bare, bound, recorded

STEPS, POINTS = 5, 2


def cells(settings: Settings) -> dict[str, Any]:
    """A cell for each network and batch; one that says why there is none on a processor."""
    if settings.device.type != "cuda":
        return {"none": without_gpu}
    names = ("digits", "dit-33M", "dit-130M", "dit-675M")
    return {f"{name}-batch-{batch}": partial(of_network, name, batch) for name in names for batch in (1, 8)}


def without_gpu(settings: Settings, machine: Machine) -> str:
    return "No figures: this machine has no CUDA device, and a processor has no CUDA graphs."


def of_network(name: str, batch: int, settings: Settings, machine: Machine) -> list[dict[str, Any]]:
    """A row for each way."""
    return measure(subject(name, settings), batch, settings, machine)


def measure(
    it: Subject, batch: int, settings: Settings, machine: Machine, make_graph: MakeGraph | None = None,
    compiled: bool = True,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each way to run a trajectory of EPD with two points; the floor of a replay is that of bare calls, too.

    Args:
        make_graph: none: CUDA graphs.
        compiled: measure `torch.compile` in its mode reduce-overhead, too.
    """
    table, noise, denoiser = plain_table(STEPS, POINTS), it.noise(batch), it.bound(batch)
    rule, device = table.rule(settings.device), settings.device
    sigmas = torch.tensor(table.sigmas).to(device)
    with torch.no_grad():
        make = partial(capture, rule, denoiser, noise.shape, noise.dtype, sigmas, device=device, make_graph=make_graph)
        by_step, whole = make(), make(whole=True)
        eager = partial(solve, rule, denoiser, noise, sigmas, check=False)
        works: dict[str, Any] = {"eager": eager, "a graph a step": partial(by_step, noise)}
        works["one graph"] = partial(whole, noise)
        calls = recorded(it.network, eager)
        if compiled:
            works["compiled"] = _compiled(it, rule, batch, noise, sigmas)
        floor = bare(it.network, calls)
        captured = make_graph() if make_graph is not None else _graph(device)
        captured.capture(floor)
    times = Times({**works, "bare calls": floor, "captured calls": captured.replay}, settings)
    return [
        {
            "network": it.name, "parameters": it.parameters, "batch": batch, "way": way,
            **times.row(way, "captured calls" if "graph" in way else "bare calls"),
            "over_eager": times.ratio(way, "eager"), "bound_ms": bound(it.network, calls, machine),
        }
        for way in works
    ]  # fmt: skip


def _graph(device: torch.device) -> Any:  # noqa: ANN401
    from ...solvers.graphs import CudaGraph

    return CudaGraph(device)


def _compiled(it: Subject, rule: Any, batch: int, noise: torch.Tensor, sigmas: torch.Tensor) -> Any:  # noqa: ANN401
    """`solve` with the network compiled; its outputs are those of a graph, and overwritten, so they are cloned."""
    network = torch.compile(it.network, mode="reduce-overhead")
    model = it.model

    def call(x: torch.Tensor, timestep: torch.Tensor, rows: Any) -> torch.Tensor:  # noqa: ANN401
        torch.compiler.cudagraph_mark_step_begin()
        return network(x, timestep=timestep, class_labels=rows["class_labels"], return_dict=False)[0].clone()

    denoiser = Subject(it.name, it.network, replace(model, call=call)).bound(batch)
    return partial(solve, rule, denoiser, noise, sigmas, check=False)
