"""What stands before a network while it is accelerated: it knows which call this is, and lets some of it through."""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Module

from ..denoisers.arguments import NetworkArguments
from ..pipelines.calls_in_progress import PipelineCall, pipeline_call
from ..pipelines.probe import ProbeScheduler
from ..pipelines.scheduler import EPDScheduler
from ..solvers.questions import Question, question_asked
from .contract import Accelerator, Live
from .cost import Called, merged
from .moment import Moment, Work
from .rows import blank_rows, choose_rows, no_rows, spread_rows
from .site import FORWARD, Cover, Site, Under
from .stock import StockRun


class Meter(Protocol):
    """Somebody who measures."""

    def watching(self) -> Any:  # noqa: ANN401 - a context manager
        """Around what the network computes."""
        ...

    def called(self, called: Called, store: int, seconds: float) -> None:
        """A network call, once its answer is known; bytes that are kept then, and seconds outside of the network."""
        ...


@dataclass
class Open:
    """A network call whose answer is not known yet."""

    now: Moment
    rows: int
    work: Work
    seconds: float


class Gate:
    """Stands before the networks of one pipeline or model, until `remove`.

    Calls that belong to no trajectory of its owner go through as they are: those of other pipelines on the same
    network, of callbacks, and of no pipeline at all.

    Args:
        networks: by name.
        pipe: that runs them; None for a model that has no pipeline.
        accelerators: in the order of application.

    Raises:
        ValueError: by an accelerator that does not fit; nothing is left behind.
    """

    def __init__(self, networks: Mapping[str, Module], pipe: Any, accelerators: Sequence[Accelerator]) -> None:  # noqa: ANN401
        self.accelerators = tuple(accelerators)
        self.networks = dict(networks)
        self.meters: list[Meter] = []
        self.last: list[Called] = []
        self._pipe = None if pipe is None else weakref.ref(pipe)
        self._release = None if pipe is None else weakref.finalize(pipe, self.remove)
        if self._release is not None:
            self._release.atexit = False
        self._under, self._run = Under(), None
        self._shapes: dict[str, Any] = {}
        self._open: list[Open] = []
        self._sites: list[Site] = []
        self._lives: list[Live] = []
        self._stock: weakref.WeakKeyDictionary[Any, StockRun] = weakref.WeakKeyDictionary()
        self._covers: list[Cover] = []
        try:
            if pipe is not None:
                self._bound(vars(pipe).get("scheduler"))
            for accelerator in reversed(self.accelerators):  # what is applied last stands innermost
                self._sites.append(Site(networks, pipe, self._under))
                self._lives.insert(0, accelerator.attach(self._sites[-1]))
            for name, network in networks.items():
                self._covers.append(Cover(network, FORWARD, functools.partial(self._called, name)))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Takes everything out again, the last thing first."""
        if self._release is not None:
            self._release.detach()
        for cover in reversed(self._covers):
            cover.remove()
        for site in reversed(self._sites):
            site.undo()
        for run in self._stock.values():
            run.remove()
        self._stock.clear()

    def stored(self) -> int:
        """Bytes that the accelerators keep now."""
        return sum(live.stored() for live in self._lives)

    def _bound(self, scheduler: Any) -> StockRun | None:  # noqa: ANN401
        """What follows this scheduler; None where it tells itself."""
        if scheduler is None or isinstance(scheduler, (EPDScheduler, ProbeScheduler)):
            return None
        if scheduler not in self._stock:
            self._stock[scheduler] = StockRun(scheduler)
        return self._stock[scheduler]

    def _question(self) -> tuple[Question | None, PipelineCall | None]:
        """What the network is asked now, if it is asked for a trajectory of the owner."""
        call, own = pipeline_call(), None if self._pipe is None else self._pipe()
        if call is None:
            return (question_asked() if self._pipe is None else None), None
        scheduler = vars(call.pipe).get("scheduler")
        if call.pipe is not own:
            return None, None
        if isinstance(scheduler, ProbeScheduler):
            return question_asked(), None
        if not call.direct:
            return None, None
        if isinstance(scheduler, EPDScheduler):
            mine = scheduler.table is None or scheduler.laid_out_in == call.number
            return (scheduler.question if mine else None), call
        bound = self._bound(scheduler)
        return (None if bound is None else bound.question), call

    def _called(self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        began = time.perf_counter()
        question, call = self._question() if self._under.now is None else (None, None)
        if question is None:
            return original(*args, **kwargs)
        arguments = NetworkArguments(args, kwargs)
        rows = len(arguments.state)
        if question.run is not self._run:
            self._begin(question.run)
        now = _moment(question, rows, call)
        if question.calls == 0:
            self._open.clear()  # of a question that nobody answered
            question.watch(self._answered)
        question.calls += 1
        self._under.state = arguments.state
        try:
            work = merged([live.before(now) for live in self._lives], now)
        finally:
            self._under.state = None
        with self._calling(now, work):
            output, inside = self._computed(name, original, arguments, work, now)
            outside = time.perf_counter() - began - inside + self._under.seconds
            self._open.append(Open(now, rows, self._under.work, outside))
        return output

    def _computed(
        self, name: str, original: Callable[..., Any], arguments: NetworkArguments, work: Work, now: Moment
    ) -> tuple[Any, float]:
        """The network's output in all rows, and the seconds that it took."""
        rows, index = len(arguments.state), None
        if work.rows is not None:
            if not len(work.rows):
                return blank_rows(self._shapes[name], rows), 0.0
            own = torch.as_tensor(work.rows, dtype=torch.long)
            offsets = torch.arange(now.copies, device=own.device) * (rows // now.copies)
            index = (offsets[:, None] + own).flatten()
            choose_rows(arguments, index)
        args, kwargs = arguments.pair()
        began = time.perf_counter()
        with contexts([meter.watching() for meter in self.meters]):
            output = original(*args, **kwargs)
        inside = time.perf_counter() - began
        if name not in self._shapes:  # the same in all of a run but for the rows
            self._shapes[name] = no_rows(output)
        return (output if index is None else spread_rows(output, index, rows)), inside

    def _begin(self, run: object) -> None:
        self._run = run
        self.last, self._shapes = [], {}
        self._open.clear()
        for live in self._lives:
            live.begin()

    def _answered(self, slopes: Tensor) -> Tensor:
        """Slopes (K, B, *S) of the question whose calls are open -> those that hold."""
        began = time.perf_counter()
        done, self._open = self._open, []
        finals = [_measured(call.now, call.rows, slopes.shape[1]) for call in done]
        for live in self._lives:
            slopes = live.after(finals[0], slopes)
        seconds, store = time.perf_counter() - began, self.stored() if self.meters else 0
        for now, call in zip(finals, done, strict=True):
            called = Called.of(now, call.work)
            self.last.append(called)
            for meter in self.meters:
                meter.called(called, store, call.seconds + seconds)
            seconds = 0.0
        return slopes

    @contextmanager
    def _calling(self, now: Moment, work: Work) -> Iterator[None]:
        under = self._under
        under.now, under.work, under.seconds, under.timed = now, work, 0.0, bool(self.meters)
        try:
            yield
        finally:
            under.now = None


@contextmanager
def contexts(managers: Sequence[Any]) -> Iterator[None]:
    """All of them, the first one outermost."""
    if not managers:
        yield
        return
    with managers[0], contexts(managers[1:]):
        yield


def _moment(question: Question, rows: int, call: PipelineCall | None) -> Moment:
    """This call, as far as it is known before the answer."""
    points, samples = len(question.slots), question.samples
    if samples is None and call is not None and (latents := call.latents()) is not None:
        samples = len(latents)
    if samples is None or (question.samples is None and rows % (samples * points)):
        samples = rows // points
    if rows % (samples * points):
        raise ValueError(
            f"the network is called with {rows} rows for {samples} samples at {points} points, so the question is "
            "answered in parts that accelerators can't tell apart: give a larger limit of rows or fewer samples "
            "together; where two networks share the timesteps, answer=epd.serial"
        )
    now = Moment(
        question.step, question.steps, question.ask, question.slots, question.calls, 1, samples, question.sigma,
        question.state,
    )  # fmt: skip
    return replace(now, copies=rows // (samples * points))


def _measured(now: Moment, rows: int, samples: int) -> Moment:
    """The call with the copies and samples that its answer shows."""
    return replace(now, copies=max(1, rows // (samples * now.points)), samples=samples)
