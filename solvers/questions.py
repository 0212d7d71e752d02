"""Which question a network's call answers: told by who asks, to whoever makes that call cheaper."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from .walk import Ask

Watcher = Callable[[Tensor], Tensor]  # slopes (K, B, *S) -> those that hold


@dataclass(eq=False)
class Question:
    """A question, or a point of one, while it is answered by one network call or by several (guidance).

    Args:
        run: the same object in all calls of a trajectory, another one in every other trajectory.
        step, steps: solver step n of N.
        ask: which of the step's questions.
        slots: its points, K of them.
        sigma: (K,) noise levels where the slopes are defined; the first sample's where each has its own.
        state: whether the first point is the solver's own state.
        samples: B; None where it is not known before the answer.
        calls: network calls that it took so far.
    """

    run: object
    step: int
    steps: int
    ask: int
    slots: tuple[int, ...]
    sigma: tuple[float, ...]
    state: bool
    samples: int | None = None
    calls: int = 0
    _watchers: list[Watcher] = field(default_factory=list)

    def watch(self, watcher: Watcher) -> None:
        """Lets `watcher` see the guided slopes (K, B, *S) once, and say which ones hold."""
        self._watchers.append(watcher)

    def settled(self, slopes: Tensor) -> Tensor:
        """The slopes that hold, (K, B, *S); the same tensor where nobody changes them."""
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            slopes = watcher(slopes)
        return slopes


class Asked:
    """Points of a walk's question that are evaluated now; its `Question` is made when somebody looks at it."""

    def __init__(self, ask: Ask, slots: tuple[int, ...]) -> None:
        self._ask, self._slots = ask, slots
        self._question: Question | None = None

    @property
    def question(self) -> Question:
        """What is asked. Reading it waits for the device, once a question."""
        if self._question is None:
            site, run = self._ask.site, self._ask.site.run
            assert run is not None, "only a walk's questions are announced"
            levels = self._ask.sigma if self._ask.sigma.ndim == 1 else self._ask.sigma[:, 0]
            sigma = levels.detach().tolist()
            own = site.stage == 0 and self._slots[0] == 0 and sigma[0] == run.levels[site.step]
            told, samples = tuple(sigma[k] for k in self._slots), self._ask.points.shape[1]
            self._question = Question(run, site.step, run.steps, site.stage, self._slots, told, own, samples)
        return self._question

    def settled(self, slopes: Tensor) -> Tensor:
        """See `Question.settled`."""
        return slopes if self._question is None else self._question.settled(slopes)


class _Stack(threading.local):
    """Of one thread: what is being asked, the innermost last, and how often `unannounced` was entered."""

    def __init__(self) -> None:
        self.asked: list[Asked | None] = []
        self.silent = 0


_stack = _Stack()


class announced:  # noqa: N801 - a context manager, as it is called by
    """What is evaluated inside answers these points of a walk's question; one that no walk asks is not announced."""

    def __init__(self, ask: Ask, slots: tuple[int, ...]) -> None:
        self._asked, self._silent = Asked(ask, slots), ask.site.run is None

    def __enter__(self) -> Asked:
        _stack.asked.append(None if self._silent or _stack.silent else self._asked)
        return self._asked

    def __exit__(self, *_: object) -> None:
        _stack.asked.pop()


def question_asked() -> Question | None:
    """The innermost question that this thread evaluates points of; None outside of any."""
    asked = _stack.asked[-1] if _stack.asked else None
    return None if asked is None else asked.question


@contextlib.contextmanager
def unannounced() -> Iterator[None]:
    """No question is announced in this thread: networks are evaluated whole, as a teacher's have to be."""
    _stack.silent += 1
    try:
        yield
    finally:
        _stack.silent -= 1
