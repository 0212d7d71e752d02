"""Where a run with a stock scheduler of diffusers is, and what its answers are as slopes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..pipelines.frames import Frame, frame_of
from ..pipelines.grids import noise_level
from ..solvers.questions import Question
from .site import Cover

READ = ("model_output", "timestep", "sample")


class StockRun:
    """Covers `step`, `set_timesteps` and `scale_model_input` of one scheduler until `remove`.

    A scheduler of order m makes m calls a step, its first one at the state.

    Args:
        scheduler: any of diffusers' whose parameterisation is known.

    Raises:
        ValueError: for one of another kind.
    """

    def __init__(self, scheduler: Any) -> None:  # noqa: ANN401
        self._frame = frame_of(scheduler)
        self._scheduler = scheduler
        self._scaled = "scale_model_input" in dir(scheduler)
        self._scale = scheduler.scale_model_input if self._scaled else None
        self._forget()
        covered = {"step": self._step, "set_timesteps": self._set_timesteps}
        if self._scaled:
            covered["scale_model_input"] = self._scale_model_input
        self._covers = [Cover(scheduler, name, instead) for name, instead in covered.items()]

    def remove(self) -> None:
        """Takes the covers off."""
        for cover in self._covers:
            cover.remove()

    @property
    def question(self) -> Question:
        """What the next network call answers."""
        if self._question is None:
            index, order = self._index(), int(self._scheduler.order)
            table = self._table()
            steps, sigma = math.ceil(len(table.timesteps) / order), (table.sigma[index],)
            self._question = Question(
                self._run, index // order, steps, index % order, (0,), sigma, index % order == 0, self._samples
            )
        return self._question

    def _forget(self) -> None:
        self._run = object()  # not that of any run before
        self._question: Question | None = None
        self._samples: int | None = None
        self._told: Any = None
        self._begin: int | None = None
        self._done = 0
        self._kept: Coefficients | None = None

    def _table(self) -> Coefficients:
        if self._kept is None:  # once a run, as it waits for the device
            self._kept = Coefficients.of(self._frame, self._scheduler.timesteps)
        return self._kept

    def _index(self) -> int:
        """Of the next call in `timesteps`."""
        times, begin = self._table().timesteps, self._begin
        if begin is None:
            begin = self._scheduler.begin_index if "begin_index" in dir(self._scheduler) else None
            if begin is None and self._told is not None:  # DDIM and the like are not told where a run begins
                begin = min(range(len(times)), key=lambda i: abs(times[i] - float(self._told)))
            begin = self._begin = begin or 0
        return min(begin + self._done, len(times) - 1)

    def _set_timesteps(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        out = original(*args, **kwargs)
        self._forget()
        return out

    def _scale_model_input(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        self._told = kwargs["timestep"] if "timestep" in kwargs else args[1] if len(args) > 1 else None
        return original(*args, **kwargs)

    def _step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        question, self._question = self._question, None
        call = inspect.signature(original).bind(*args, **kwargs)
        output, timestep, sample = (call.arguments[name] for name in READ)
        self._samples = len(sample)
        if question is not None and question.calls:
            call.arguments["model_output"] = self._settled(question, output, timestep, sample)
        out = original(*call.args, **call.kwargs)
        self._done += 1
        return out

    def _settled(self, question: Question, output: Tensor, timestep: Any, sample: Tensor) -> Tensor:  # noqa: ANN401
        """The output whose slopes are those that hold; the same one where nobody changes them."""
        seen = sample if self._scale is None else self._scale(sample, timestep)
        values = output[:, : sample.shape[1]]  # a learned variance may stand behind them
        conversion = Conversion(self._table(), self._index(), seen)
        slopes = conversion.slopes(values)
        settled = question.settled(slopes[None])[0]
        if settled is slopes or (settled.data_ptr() == slopes.data_ptr() and settled.shape == slopes.shape):
            return output
        changed = conversion.output(settled).to(output.dtype)
        changed = torch.where(settled == slopes, values, changed)  # what was computed keeps its bits
        return torch.cat([changed, output[:, sample.shape[1] :]], dim=1)


@dataclass(frozen=True)
class Coefficients:
    """What a network's output is at each of a run's timesteps: D = c_skip x + c_out F(c_in x)."""

    timesteps: list[float]
    sigma: list[float]
    c_skip: list[float]
    c_out: list[float]
    c_in: list[float]

    @classmethod
    def of(cls, frame: Frame, timesteps: Tensor) -> Coefficients:
        """At these timesteps of a scheduler."""
        sigma = noise_level(frame, timesteps)
        return cls(timesteps.tolist(), sigma.tolist(), *(c.tolist() for c in frame.precondition(sigma)[:3]))


class Conversion:
    """Between a network's output F and the slope: d = ((1 - c_skip) x - c_out F) / sigma.

    Args:
        table, index: of the call.
        seen: (B, *S) c_in x, what the network is given.
    """

    def __init__(self, table: Coefficients, index: int, seen: Tensor) -> None:
        work = seen.to(torch.promote_types(seen.dtype, torch.float32))
        self._rest = work * ((1 - table.c_skip[index]) / table.c_in[index])  # 0 where the slope itself is predicted
        self._c_out, self._sigma = table.c_out[index], table.sigma[index]

    def slopes(self, output: Tensor) -> Tensor:
        """(B, *S)."""
        return (self._rest - self._c_out * output.to(self._rest.dtype)) / self._sigma

    def output(self, slopes: Tensor) -> Tensor:
        """(B, *S)."""
        return (self._rest - self._sigma * slopes) / self._c_out
