"""The fastest answer, measured once for each shape of a question; and the names of answers."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from ..denoisers.protocol import Denoiser, capturing
from .answers import MakeAnswer, batched, serial, streams
from .walk import Answer, Ask

AnswerName: TypeAlias = Literal["batched", "serial", "streams", "auto"]
Asked: TypeAlias = tuple[torch.Size, torch.dtype, torch.device]
Seconds: TypeAlias = Callable[[Callable[[], object], torch.device], float]
ROUNDS = 3  # timings of each candidate, of which the shortest counts, after one call that warms up


def auto(candidates: Mapping[str, MakeAnswer] | None = None) -> Auto:
    """Answers by whichever way was faster when the first question of a shape (K, B, *S) was measured.

    A choice holds for every denoiser that is answered for by the same `auto()`: keep one for each model. Measuring
    makes a few more calls of the first question of a shape, and on a GPU waits for it. Numbers differ by rounding only.

    Args:
        candidates: by name; None: batched and serial, and streams on a CUDA device.
    """
    return Auto(candidates)


def answer_named(name: str) -> MakeAnswer:
    """The answer of this name: `batched`, `serial`, `streams`, or `auto`, a new one.

    Raises:
        ValueError: for another name.
    """
    made: dict[str, Callable[[], MakeAnswer]] = {
        "batched": lambda: batched, "serial": lambda: serial, "streams": lambda: streams, "auto": auto,
    }  # fmt: skip
    if name not in made:
        raise ValueError(f"answer = {name!r} is unknown: give one of {', '.join(get_args(AnswerName))}")
    return made[name]()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """How long this takes, the device's part included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def fastest(works: Mapping[str, Callable[[], object]], device: torch.device, seconds: Seconds = seconds_of) -> str:
    """The name of the fastest of these works; one that runs out of memory is none.

    Raises:
        torch.OutOfMemoryError: where all of them do.
    """
    times = {name: [] for name in works}
    with torch.no_grad():
        for _ in range(1 + ROUNDS):  # in turns, so that a machine that slows down slows all
            for name in [*times]:
                try:
                    times[name].append(seconds(works[name], device))
                except torch.OutOfMemoryError:
                    del times[name]
                    if not times:
                        raise
    return min(times, key=lambda name: min(times[name][1:]))


@dataclass(frozen=True, eq=False)
class Auto:
    """Made by `auto`.

    Args:
        candidates: of `auto`.
        seconds: measures one call.
        choices: what was found, by shape, dtype and device of the points.
    """

    candidates: Mapping[str, MakeAnswer] | None = None
    seconds: Seconds = seconds_of
    choices: dict[Asked, str] = field(default_factory=dict, init=False)

    def __call__(self, denoiser: Denoiser) -> Answer:
        answers: dict[str, Answer] = {}

        def named(name: str, device: torch.device) -> Answer:
            if name not in answers:
                answers[name] = self._candidates(device)[name](denoiser)
            return answers[name]

        def answer(ask: Ask) -> Tensor:
            key = (ask.points.shape, ask.points.dtype, ask.points.device)
            if key not in self.choices:
                names = [*self._candidates(ask.points.device)]
                if len(ask.points) == 1 or capturing(ask.points):
                    return named(names[0], ask.points.device)(ask)  # the same call whoever answers, or no time to ask
                works = {name: functools.partial(named(name, ask.points.device), ask) for name in names}
                self.choices[key] = fastest(works, ask.points.device, self.seconds)
            return named(self.choices[key], ask.points.device)(ask)

        return answer

    def _candidates(self, device: torch.device) -> Mapping[str, MakeAnswer]:
        if self.candidates is not None:
            return self.candidates
        side_by_side = {"streams": streams} if device.type == "cuda" else {}
        return {"batched": batched, "serial": serial, **side_by_side}
