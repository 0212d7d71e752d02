"""`accelerate`, `decelerate`, `summary`, `measure`: accelerators go into a live pipeline or model, and out again."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from diffusers.modular_pipelines.modular_pipeline import ModularPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch.nn import Module

from ..denoisers.fingerprint import Transparent
from ..denoisers.rows import RowLimited
from ..pipelines import enable
from ..pipelines.denoiser import PipelineModel
from ..pipelines.enable import Summary
from ..pipelines.graphed import Cover as Graphed
from ..pipelines.placement import networks_in
from ..pipelines.scheduler import EPDScheduler
from .contract import Accelerator
from .cost import Cost, together
from .gate import Gate
from .measure import Measurement
from .names import EXCLUDE, LAST, label, spelt, to_json
from .planned import of_scheduler
from .site import FORWARD

Target = TypeVar("Target")
CONTROLNET = "controlnet"  # it answers a network, not a solver
# By the pipeline, or by the first network of a model that has none.
_gates: weakref.WeakKeyDictionary[Any, Gate] = weakref.WeakKeyDictionary()


def accelerate(target: Target, *accelerators: Accelerator) -> Target:
    """Makes the network calls of a pipeline's or a model's trajectories cheaper, under any solver.

    They work in the pipeline's own runs, stock or enabled, and in what `epd.solve` asks of a model of the same networks
    (`from_pipeline(pipe)`, a `NetworkDenoiser` that names its networks); every other call of a network goes through as
    it is. What was there before is replaced. State is forgotten when a trajectory begins.

    Args:
        target: a pipeline of diffusers, or a model.
        accelerators: applied in this order, but Slices after all others; none: those before are taken out.

    Returns:
        The same object.

    Raises:
        ValueError: for accelerators that do not go together or do not fit the network; what was there before stays.
        TypeError: for what is no accelerator, such as its class or its name.
    """
    owner, pipe, networks = _parts(target)
    for one in accelerators:
        if isinstance(one, type) or not isinstance(one, Accelerator):
            what = f"the class {one.__name__}" if isinstance(one, type) else repr(one)
            raise TypeError(f"{what} is no accelerator: give one with its settings, such as epd.FirstBlock(0.2)")
    _require_together(accelerators)
    _require_unmeasured(_gates.get(owner))
    accelerators = tuple(sorted(accelerators, key=lambda a: label(a) in LAST))
    for name, network in networks.items():
        _require_open(name, network)
    before = _gates.pop(owner, None)
    if before is not None:
        before.remove()
    if not accelerators:
        return target
    try:
        _gates[owner] = Gate(networks, pipe, accelerators)
    except BaseException:
        if before is not None:
            _gates[owner] = Gate(networks, pipe, before.accelerators)
        raise
    return target


def decelerate(target: Target) -> Target:
    """Takes all accelerators out: no hook, no attribute is left. Nothing to do is fine, too."""
    owner = _parts(target)[0]
    gate = _gates.get(owner)
    if gate is not None and gate.accelerators:
        _require_unmeasured(gate)
        _gates.pop(owner).remove()
    return target


def accelerators_of(target: object) -> tuple[Accelerator, ...]:
    """Those at work in a pipeline or model, in the order of application; none for what has no network."""
    try:
        gate = _gates.get(_parts(target)[0])
    except ValueError:
        return ()
    return () if gate is None else gate.accelerators


def networks_of(target: object) -> Mapping[str, Module]:
    """The denoising networks of a pipeline or model by name.

    Raises:
        ValueError: for what has none that is known.
    """
    return _parts(target)[2]


def recorded(target: object) -> tuple[dict[str, Any], ...]:
    """Those at work in a pipeline or model as plain data, for what is learned or measured with them.

    Raises:
        ValueError: for one that is not registered, which no file can name.
    """
    return tuple(to_json(accelerators_of(target)))


def summary(target: object) -> Summary:
    """What `enable` and `accelerate` put in, what they are planned to cost and what the last run did: print it."""
    owner, pipe, _ = _parts(target)
    shown = Summary(type(target).__name__) if pipe is None else enable.summary(pipe)
    gate = _gates.get(owner)
    if gate is None or not gate.accelerators:
        return shown
    lines = [f"accelerated: {', '.join(map(spelt, gate.accelerators))}"]
    scheduler = None if pipe is None else vars(pipe).get("scheduler")
    if isinstance(scheduler, EPDScheduler) and (calls := of_scheduler(pipe)):
        called = together([a.plan(calls) for a in gate.accelerators], calls)
        lines.append("plan of a sample: " + ("it depends on the sample" if called is None else str(Cost.of(called))))
    if gate.last:
        lines.append(f"last run: {Cost.of(gate.last)}; {gate.stored()} bytes kept")
    return dataclasses.replace(shown, accelerated=tuple(lines))


@contextmanager
def measure(target: object, counts: bool = True) -> Iterator[Measurement]:
    """Counts what the trajectories of a pipeline or model cost inside: `with epd.measure(pipe) as m: pipe(...)`.

    Args:
        target: accelerated or not.
        counts: FLOPs and bytes, too, which slows every operation; False for `seconds` that are true.
    """
    owner, pipe, networks = _parts(target)
    gate = _gates.get(owner)
    if gate is None:
        gate = _gates[owner] = Gate(networks, pipe, ())
    measured = Measurement(counts=counts)
    gate.meters.append(measured)
    try:
        yield measured
    finally:
        gate.meters.remove(measured)
        if not gate.meters and not gate.accelerators:
            _gates.pop(owner).remove()


def _parts(target: object) -> tuple[Any, Any, Mapping[str, Module]]:
    """By what its gate is found, its pipeline, and its networks.

    Raises:
        ValueError: for what has no network that is known.
    """
    if isinstance(target, RowLimited):
        return _parts(target.model)
    if isinstance(target, PipelineModel):
        return _parts(target.pipe)
    if isinstance(target, (DiffusionPipeline, ModularPipeline)):
        networks = {name: part for name, part in networks_in(target).items() if name != CONTROLNET}
        if not networks:
            raise ValueError(f"{type(target).__name__} has no denoising network to accelerate")
        return target, target, networks
    found = target.depends_on() if isinstance(target, Transparent) else None
    if found is None or not found.networks:
        raise ValueError(
            f"{type(target).__name__} names no network to accelerate: give a pipeline, epd.from_pipeline's model, or a "
            "NetworkDenoiser with networks=(network,)"
        )
    named = {"network" if i == 0 else f"network_{i + 1}": network for i, network in enumerate(found.networks)}
    return found.networks[0], None, named


def _require_unmeasured(gate: Gate | None) -> None:
    if gate is not None and gate.meters:
        raise ValueError("epd.measure is under way here and would miss what changes: accelerate before or after it")


def _require_open(name: str, network: Module) -> None:
    if network._compiled_call_impl is not None:
        raise ValueError(
            f"{name} was compiled in place, and nothing can stand before it: put pipe.{name} = torch.compile(pipe."
            f"{name}) in its place"
        )
    if isinstance(vars(network).get(FORWARD), Graphed):
        raise ValueError(f"{name} is replayed from graphs, which decide nothing: epd.enable(pipe, graphs=False) first")


def _require_together(accelerators: tuple[Accelerator, ...]) -> None:
    names = [label(a) for a in accelerators]
    for group, why in EXCLUDE:
        found = [name for name in names if name in group]
        if len(found) > 1:
            raise ValueError(f"{' and '.join(found)} do not go together: {why}; leave one out")
