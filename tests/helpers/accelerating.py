"""Accelerators for the tests of their contract, and what a pipeline looks like from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

import epd
from epd.accelerators.moment import Moment, Work
from epd.accelerators.site import Site
from epd.denoisers.noise import unit_noise
from helpers import tiny_pipelines
from helpers.pipeline_families import FAMILIES, SEEDS
from helpers.pipeline_tables import table_for

COPIES = {"flux": 1, "ddpm": 1, "dit": 1, "wan": 1}  # 2 elsewhere: guidance doubles the call
BRANCHES = {"wan": 2}
SAMPLES = {"dit": 4}  # both halves of a guided call are stepped; 2 elsewhere


def told(name: str) -> dict[str, int]:
    """What a plan needs to know of a family's guided call of two samples."""
    return {"samples": SAMPLES.get(name, 2), "copies": COPIES.get(name, 2), "branches": BRANCHES.get(name, 1)}


def traces(pipe: Any) -> list[Any]:  # noqa: ANN401
    """All that attaching might leave: hooks, attributes and keys of the network and of the scheduler."""
    network = tiny_pipelines.network(pipe)
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks), len(m._backward_hooks)) for m in network.modules()]
    attributes = [sorted(vars(m)) for m in network.modules()]
    return [hooks, attributes, list(network.state_dict()), sorted(vars(pipe.scheduler)), sorted(vars(pipe))]


def drivers(name: str, pipe: Any, kind: str = "mixed") -> Iterator[tuple[str, Callable[[], Tensor]]]:  # noqa: ANN401
    """Every way to a trajectory: stock, enabled in both placements, solved by us; the pipeline is bare afterwards."""
    yield "stock", lambda: tiny_pipelines.run(pipe, name, 3)
    for parallel in (True, False):
        epd.enable(pipe, table_for(name, kind), parallel=parallel)
        yield ("batched" if parallel else "serial"), lambda: tiny_pipelines.run(pipe, name, 4)
    epd.disable(pipe)
    guidance = None if name in ("flux", "ddpm") else 3.0
    model, table = FAMILIES[name].model(pipe, guidance), table_for(name, kind)
    denoiser, noise = model.for_seeds(SEEDS), unit_noise(SEEDS, model.shape)
    for answer in (epd.batched, epd.serial):

        def solve(answer: Any = answer) -> Tensor:  # noqa: ANN401
            with torch.no_grad():
                return epd.solve(table.rule(), denoiser, noise, table.sigmas, answer)

        yield answer.__name__, solve


@dataclass(frozen=True)
class Everything:
    """Hooks everything, says that it computes all rows, and changes nothing."""

    def attach(self, site: Site) -> Following:
        for network in site.networks.values():
            for module in network.modules():
                site.before(module, lambda module, args, kwargs: (args, kwargs) if site.now else None)
                site.after(module, lambda module, args, kwargs, output: output if site.now else None)
                if not isinstance(module, torch.nn.ModuleList):
                    site.cover(module, lambda original, *args, **kwargs: original(*args, **kwargs))
        return Following()

    def plan(self, calls: Sequence[Moment]) -> list[Work]:
        return [Work()] * len(calls)


class Following:
    """Keeps what it is told; everything is computed."""

    def __init__(self) -> None:
        self.begun = 0
        self.told: list[Moment] = []

    def begin(self) -> None:
        self.begun += 1
        self.told.clear()

    def before(self, now: Moment) -> Work:
        self.told.append(now)
        return Work(range(now.samples * now.points))

    def after(self, now: Moment, slopes: Tensor) -> Tensor:
        assert slopes.shape[:2] == (now.points, now.samples)
        return slopes

    def stored(self) -> int:
        return 0


@dataclass(frozen=True)
class PerSample:
    """In each of these (step, sample) pairs the sample takes its last slope at a state again: per-sample decisions."""

    pairs: tuple[tuple[int, int], ...]

    def attach(self, site: Site) -> Deciding:
        return Deciding(self)

    def plan(self, calls: Sequence[Moment]) -> None:
        return None


class Deciding(Following):
    def __init__(self, settings: PerSample) -> None:
        super().__init__()
        self._pairs, self._kept = settings.pairs, torch.empty(0)

    def _left_out(self, now: Moment) -> list[int]:
        return [b for step, b in self._pairs if step == now.step]

    def before(self, now: Moment) -> Work:
        out = self._left_out(now)
        return Work([b * now.points + k for b in range(now.samples) if b not in out for k in range(now.points)])

    def after(self, now: Moment, slopes: Tensor) -> Tensor:
        out = slopes.clone()
        for b in self._left_out(now):
            out[:, b] = self._kept[b]
        if now.state:
            self._kept = out[0].clone()
        return out


def moments(pipe_or_model: Any, run: Callable[[], object]) -> list[Moment]:  # noqa: ANN401
    """What was told in this run."""
    with epd.measure(pipe_or_model, counts=False) as measured:
        run()
    return [called.now for called in measured.calls]


def without_sigma(calls: Sequence[Moment]) -> list[Moment]:
    return [replace(now, sigma=()) for now in calls]


def fails_in(module: Module, call: int) -> Callable[[], None]:
    """Lets this call of a module, from 0, fail; returns what ends this."""
    count = [0]

    def fail(*_: object) -> None:
        count[0] += 1
        if count[0] == call + 1:
            raise InterruptedError

    return module.register_forward_hook(fail).remove
