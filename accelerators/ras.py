"""Region-adaptive sampling: the tokens that change are computed, the others keep the slope that they had."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .moment import Moment, Work
from .places import places_of
from .regions import choose, deviation, norm, spread, tokens_of
from .site import Site
from .tokens import TokenHooks

log = logging.getLogger("epd")


@dataclass(frozen=True)
class RAS:
    """In most calls only a share of a picture's tokens goes through the transformer, each sample's own.

    The others keep the slope of the last state where they were computed, and their keys and values of then; the solver
    moves all of them, whichever it is. Works in DiT, FLUX, Lumina-Next, PixArt, SD3 and SD3.5, at any batch and size.
    As published: `RAS(0.5, score="std", warmup=4, gap=None, resets=(12, 20), starvation="published")`.

    Args:
        ratio: a in (0, 1], share that is computed: n = N - floor((1 - a) N) of N tokens, at least 2. Several are those
            of equal parts of the run, so many as there are steps one for each: step n of T has number floor(n len / T);
            `falling_ratios` makes the published ones.
        where: `all`: at states and in the fan; `fan`: states are computed whole, and what the fan leaves out is the
            slope of the same step's state.
        score: what a token has: `change`, |d_n - d_(n-1)| of its last two slopes at states; `std`, the standard
            deviation over channels, of which the paper says that it is small in the main subject; `norm`, |d|;
            `random`: the same tokens in all samples, other ones every time.
        high: share of the dropped tokens that comes from the top of the scores, the others from the bottom; None: none
            of `change` and `random`, all of `std` and `norm`.
        warmup: first steps that are whole; None: 4, and 1 where only the fan is regional.
        gap: the most steps that a token can be left out: every gap-th step after the warm-up is whole ("error reset").
            None: never; the fan alone needs none.
        resets: more steps that are whole, from 0.
        starvation: `mended`: a token dropped D times since the last whole step is less likely to be dropped again, by
            exp(k D), at both ends of the scores. `published`: D grows over the whole sample, and at the top makes it
            more likely.
        strength: k.
        seed: of `random`.

    Raises:
        ValueError: for a number outside of its bounds.

    Reference: arXiv 2502.10389.
    """

    ratio: float | tuple[float, ...]
    where: Literal["all", "fan"] = "all"
    score: Literal["change", "std", "norm", "random"] = "change"
    high: float | None = None
    warmup: int | None = None
    gap: int | None = 8
    resets: tuple[int, ...] = ()
    starvation: Literal["mended", "published"] = "mended"
    strength: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "resets", tuple(sorted({int(n) for n in self.resets})))
        choices = {
            "where": ("all", "fan"), "score": ("change", "std", "norm", "random"),
            "starvation": ("mended", "published"),
        }  # fmt: skip
        for name, words in choices.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name} = {getattr(self, name)!r} is unknown: give {' or '.join(map(repr, words))}")
        if not isinstance(self.ratio, (int, float)):
            ratios = tuple(float(a) for a in self.ratio)
            object.__setattr__(self, "ratio", ratios[0] if len(ratios) == 1 else ratios)
        if not self.ratios or not all(0 < a <= 1 for a in self.ratios):
            raise ValueError(f"ratio = {self.ratio} must lie in (0, 1]: it is the share of the tokens that is computed")
        if self.high is not None and not 0 <= self.high <= 1:
            raise ValueError(f"high = {self.high} must lie in [0, 1]: it is a share of the dropped tokens")
        if self.warmup is not None and self.warmup < 1:
            raise ValueError(f"warmup = {self.warmup} must be 1 at least: without a whole step nothing is known")
        if self.gap is not None and self.gap < 1:
            raise ValueError(f"gap = {self.gap} must be 1 at least; None for no error resets")
        if self.resets and self.resets[0] < 0:
            raise ValueError(f"resets = {list(self.resets)} must be solver steps from 0")
        if not (self.strength >= 0 and math.isfinite(self.strength)):
            raise ValueError(f"strength = {self.strength} must be finite and not negative; 0 to forget drops")

    def attach(self, site: Site) -> Regional:
        """Hooks the network's tokens.

        Raises:
            ValueError: for a network of another class, an unknown attention, fused projections, an active cache.
        """
        return Regional(self, site)

    @property
    def ratios(self) -> tuple[float, ...]:
        """One, or those of equal parts of the run."""
        return self.ratio if isinstance(self.ratio, tuple) else (self.ratio,)

    def share(self, step: int, steps: int) -> float:
        """a of this step of so many."""
        return self.ratios[step * len(self.ratios) // steps]

    def active(self, tokens: int, step: int = 0, steps: int = 1) -> int:
        """n of N tokens in this step of so many."""
        return max(min(2, tokens), tokens - int((1 - self.share(step, steps)) * tokens + 1e-9))

    def plan(self, calls: Sequence[Moment], tokens: int | None = None) -> list[Work]:
        """Which share of the tokens each call computes.

        Args:
            tokens: N of the pictures to come, for the exact share n / N; None: the ratio.
        """
        out, course = [], Course()
        for now in calls:
            course.asked(now)
            share = 1.0
            if self.regional(now, course):
                at = now.step, now.steps
                share = self.share(*at) if tokens is None else self.active(tokens, *at) / tokens
            out.append(Work(tokens=share))
            if now.state and now.branch == 0:
                course.answered += 1
        return out

    def regional(self, now: Moment, course: Course) -> bool:
        """Whether a call is of some tokens only."""
        fan, warmup = self.where == "fan", self.warmup
        if warmup is None:
            warmup = 1 if fan else 4
        step = now.step - course.start  # of an img2img's run, too, the first ones are whole
        if step < warmup or now.step in self.resets or course.known < (2 if self.score == "change" else 1):
            return False
        if fan:
            return now.ask > 0  # in a step of one call the fan goes with its state, which is whole
        return self.gap is None or step == warmup or (step - warmup) % self.gap != 0


@dataclass
class Course:
    """How far a trajectory is.

    Args:
        start: its first step.
        answered: states whose slope is known.
        known: when the present question was asked; its points, in one call or one by one, all know the same.
    """

    start: int = -1
    answered: int = 0
    known: int = 0
    question: tuple[int, int] = (-1, -1)

    def asked(self, now: Moment) -> bool:
        """Whether a call is the first one of its question."""
        if (now.step, now.ask) == self.question:
            return False
        self.start = now.step if self.start < 0 else self.start
        self.question, self.known = (now.step, now.ask), self.answered
        return True


class Regional:
    """See `Live`."""

    def __init__(self, settings: RAS, site: Site) -> None:
        self._settings = settings
        self._places = places_of(site.only, "ras")
        self._hooks = TokenHooks(site, self._places, "ras")
        self._warned = False
        self.begin()

    def begin(self) -> None:
        self._hooks.begin()
        self._course = Course()
        self._kept: Tensor | None = None  # (B, *S) each token's last slope at a state
        self._scores: Tensor | None = None  # (B, N)
        self._drops = torch.empty(0)  # (B, N)
        self._active: Tensor | None = None  # (B, n) of this question
        self._some = False  # whether a call of the open question was of some tokens

    def before(self, now: Moment) -> Work | None:
        settings, hooks = self._settings, self._hooks
        if self._course.asked(now):
            self._active = None
        if settings.where == "fan" and now.step and not now.ask and max(now.slots) and not self._warned:
            self._warned = True
            log.warning(
                "RAS(where='fan') leaves nothing out of steps that ask for the state and its points at once: take "
                "where='all', or a table whose fan is a question of its own (epd distill --family two-call)"
            )
        if now.branch == 0:
            self._some, hooks.called = False, ()
        hooks.active = None
        if not settings.regional(now, self._course) or self._scores is None or not hooks.ready(now):
            return None
        if self._active is None:
            high = settings.high
            if high is None:
                high = float(settings.score in ("std", "norm"))
            scores = self._random() if settings.score == "random" else self._scores
            count, published = settings.active(hooks.count, now.step, now.steps), settings.starvation == "published"
            self._active = choose(scores, self._drops, count, high, settings.strength, published)
        hooks.active, self._some = self._active, True
        return Work(tokens=self._active.shape[1] / hooks.count)

    def after(self, now: Moment, slopes: Tensor) -> Tensor:
        rows, out = self._hooks.called, slopes
        if rows is not None and not len(rows):
            return slopes  # of others: nothing new is known
        computed = torch.ones(now.samples, now.points, dtype=torch.bool, device=slopes.device)
        if rows is not None:
            computed = torch.zeros_like(computed).flatten()
            computed[torch.as_tensor(list(rows), device=slopes.device)] = True
            computed = computed.unflatten(0, (now.samples, now.points))
        fresh = computed[:, :1].expand(-1, self._hooks.count)
        if self._some:
            assert self._active is not None and self._kept is not None, "some tokens are computed where a slope is kept"
            active = torch.zeros_like(fresh).scatter(1, self._active.to(slopes.device), True)
            if self._active.shape[1] < self._hooks.count:
                left = computed.T[..., None] & ~active  # (K, B, N)
                stale = spread(left.flatten(0, 1), slopes.shape[2:]).unflatten(0, left.shape[:2])
                out = torch.where(stale, self._kept, slopes)
            fresh = fresh & active
        if now.state:
            self._note(out[0], fresh, computed[:, 0])
        return out

    def stored(self) -> int:
        kept = (self._kept, self._scores, self._drops)
        return self._hooks.stored() + sum(tensor.nbytes for tensor in kept if tensor is not None)

    def _note(self, state: Tensor, fresh: Tensor, computed: Tensor) -> None:
        """Takes the slopes (B, *S) at a state in: fresh ones (B, N), of the samples (B,) that were computed."""
        settings, count = self._settings, self._hooks.count
        tokens = tokens_of(state.detach(), count, self._places.pixels)
        if settings.score == "std" and tokens.shape[2] == 1:
            raise ValueError("score = 'std' tells nothing of states with one channel: give 'change' or 'norm'")
        if self._kept is None:
            self._kept = state.clone()
            self._drops = torch.zeros(fresh.shape, device=state.device)
            self._scores = torch.zeros_like(self._drops)
            if settings.score in ("std", "norm"):
                self._scores = deviation(tokens) if settings.score == "std" else norm(tokens)
            self._course.answered += 1
            return
        assert self._scores is not None, "there are scores where a slope is kept"
        if settings.score == "std":
            scores = deviation(tokens)
        else:
            before = tokens_of(self._kept.detach(), count, self._places.pixels)
            scores = norm(tokens if settings.score == "norm" else tokens - before)
        self._scores = torch.where(fresh, scores, self._scores)
        dropped = computed[:, None] & ~fresh
        if settings.starvation == "mended":  # after a whole step nothing is stale
            self._drops = self._drops * (dropped.any(dim=1, keepdim=True) | ~computed[:, None])
        self._drops = self._drops + dropped
        self._kept = torch.where(computed.view(-1, *[1] * (state.ndim - 1)), state, self._kept)
        self._course.answered += 1

    def _random(self) -> Tensor:
        """(B, N), other ones after every state."""
        assert self._scores is not None, "there are scores where a slope is kept"
        generator = torch.Generator().manual_seed(self._settings.seed * 1_000_003 + self._course.known)
        return torch.rand(self._scores.shape[1], generator=generator).to(self._scores.device).expand_as(self._scores)
