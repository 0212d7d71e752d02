"""The three heads of a policy of accelerated sampling, and what they see of a trajectory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .decisions import (
    beta_entropy,
    beta_log_prob,
    beta_mode,
    choice_entropy,
    choice_log_prob,
    jump_parameters,
    start_logits,
)

HeadName = Literal["step", "cache", "sparse"]
HEADS: tuple[HeadName, ...] = ("step", "cache", "sparse")
NUMBERS = 6  # beside the maps, see `Seen`
TINY = 1e-8


@dataclass(frozen=True)
class Layout:
    """The numbers that heads are made of.

    Args:
        channels: of a state as a map, see `as_map`.
        steps: N, of the solver that they are learned for.
        heads: which there are; what has none is as at the start: a jump of `jump`, always computed, always dense.
        levels: share of attention's mass that each sparse level keeps, see `kept_blocks`; level 0 is dense and not
            among them.
        costs: of a call at each of these levels, in dense calls.
        width: channels of the first convolution; the later ones have two and four times as many.
        size: longest side of the maps that heads see; larger ones are averaged.
        jump: steps ahead at the start.
        sharpness: of the jump's Beta at the start, see `jump_parameters`.
        block: tokens in a block of sparse attention.
        explored: probability, at the start, of reusing, and of any sparse level.

    Raises:
        ValueError: naming value, bound and remedy.
    """

    channels: int
    steps: int
    heads: tuple[HeadName, ...] = ("step", "cache")
    levels: tuple[float, ...] = ()
    costs: tuple[float, ...] = ()
    width: int = 16
    size: int = 32
    jump: int = 1
    sharpness: float = 2.0
    explored: float = 0.1
    block: int = 128

    def __post_init__(self) -> None:
        for name in ("channels", "steps", "width", "size", "jump", "block"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 2**20:
                raise ValueError(f"{name} = {value!r} must be a whole number from 1 to {2**20}")
        if not self.heads or len(set(self.heads)) < len(self.heads) or not set(self.heads) <= set(HEADS):
            raise ValueError(f"heads = {list(self.heads)}: give some of {', '.join(HEADS)}, each once")
        if self.jump > self.steps:
            raise ValueError(f"jump = {self.jump} must be at most steps = {self.steps}")
        if not (0 < self.sharpness < math.inf and 0 < self.explored < 1):
            raise ValueError(f"sharpness = {self.sharpness} must be > 0 and explored = {self.explored} in (0, 1)")
        if len(self.costs) != len(self.levels) or ("sparse" in self.heads) != bool(self.levels):
            raise ValueError(
                f"levels = {list(self.levels)} and costs = {list(self.costs)}: a sparse head needs one cost for each "
                "of its levels, and without that head there are none"
            )
        if not all(0 < level <= 1 for level in self.levels) or not all(0 < cost < math.inf for cost in self.costs):
            raise ValueError(f"levels = {list(self.levels)} must be in (0, 1] and costs = {list(self.costs)} > 0")


@dataclass(frozen=True)
class Seen:
    """What a head decides on.

    Args:
        maps: (R, 2 C, h, w) two maps of unit root mean square: the state, and its change since the last evaluation or
            the slope.
        numbers: (R, 6) share of the steps that remain, log noise level, log root mean square of the state, that of the
            other map relative to it, steps since the last evaluation and evaluations so far, as shares of the steps.
        remaining: (R,) int64, steps that are left with the present one.
    """

    maps: Tensor
    numbers: Tensor
    remaining: Tensor

    def __getitem__(self, rows: Tensor) -> Seen:
        return Seen(self.maps[rows], self.numbers[rows], self.remaining[rows])


def as_map(x: Tensor, size: int) -> Tensor:
    """States (B, *S) as maps (B, C, h, w) in float32, their sides at most `size`, larger ones averaged.

    Pictures are their own maps; frames of a video stand one below the other, packed tokens (n, C) in a column; points
    are one row.
    """
    x = x.detach().float()
    if x.ndim == 5:
        x = x.flatten(2, 3)
    elif x.ndim == 3:
        x = x.transpose(1, 2)[..., None]
    elif x.ndim != 4:
        x = x.flatten(1)[:, None, None]
    sides = (min(x.shape[2], size), min(x.shape[3], size))
    return x if sides == x.shape[2:] else F.adaptive_avg_pool2d(x, sides)


def look(state: Tensor, other: Tensor, sigma: float, steps: int, remaining: Tensor, age: Tensor, spent: Tensor) -> Seen:
    """What is seen of maps (R, C, h, w); remaining, age and spent are (R,)."""
    scale, beside = (m.square().mean((1, 2, 3)).sqrt() + TINY for m in (state, other))
    maps = torch.cat([state / scale[:, None, None, None], other / beside[:, None, None, None]], 1)
    level = torch.full_like(scale, math.log(max(sigma, TINY)))
    counts = [values.to(scale) / steps for values in (remaining, age, spent)]
    numbers = torch.stack([counts[0], level, scale.log(), (beside / scale).log(), *counts[1:]], 1)
    return Seen(maps, numbers, remaining)


class Head(nn.Module):
    """Maps and numbers -> outputs: convolutions of stride 2, the first one modulated by the numbers, pooled.

    The last layer begins at zero with a bias, so that at the start every state has the same distribution.

    Reference: arXiv 2509.22323, arXiv 2412.01243.
    """

    def __init__(self, channels: int, width: int, bias: list[float]) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.third = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.told = nn.Sequential(nn.Linear(NUMBERS, 2 * width), nn.SiLU(), nn.Linear(2 * width, 4 * width))
        self.last = nn.Linear(8 * width, len(bias))
        nn.init.zeros_(self.last.weight)
        with torch.no_grad():
            self.last.bias.copy_(torch.tensor(bias))

    def forward(self, maps: Tensor, numbers: Tensor) -> Tensor:
        """(R, outputs)."""
        x = self.second(F.silu(self.first(maps)))
        scale, shift = self.told(numbers)[:, :, None, None].chunk(2, 1)
        x = F.silu(F.group_norm(x, 1) * (1 + scale) + shift)
        x = F.silu(self.third(x))
        return self.last(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))


class Heads(nn.Module):
    """The heads of a layout, in float32; they share nothing.

    Args:
        layout: what they are made of.
        seed: of the initial weights.
    """

    def __init__(self, layout: Layout, seed: int = 0) -> None:
        super().__init__()
        self.layout = layout
        biases = {
            "step": [0.0, 0.0],
            "cache": start_logits(2, layout.explored),
            "sparse": start_logits(1 + len(layout.levels), layout.explored) if layout.levels else [],
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            own = [name for name in HEADS if name in layout.heads]
            self.parts = nn.ModuleDict({name: Head(2 * layout.channels, layout.width, biases[name]) for name in own})

    def outputs(self, head: HeadName, seen: Seen) -> Tensor:
        """(R, outputs): logits, or the parameters of a jump before they are made positive."""
        return self.parts[head](seen.maps, seen.numbers)

    def jumps(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """(alpha, beta) of the share that is left after a jump."""
        return jump_parameters(self.outputs("step", seen), seen.remaining, self.layout.jump, self.layout.sharpness)

    def likeliest(self, head: HeadName, seen: Seen) -> Tensor:
        """(R,) the most probable choice, or the mode of the jump."""
        return beta_mode(*self.jumps(seen)) if head == "step" else self.outputs(head, seen).argmax(1)

    def log_prob_and_entropy(self, head: HeadName, seen: Seen, action: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) each, of choices int64, or of shares in (0, 1) for the step head."""
        if head == "step":
            pair = self.jumps(seen)
            return beta_log_prob(action, *pair), beta_entropy(*pair)
        logits = self.outputs(head, seen)
        return choice_log_prob(action, logits), choice_entropy(logits)


@dataclass(frozen=True)
class Taken:
    """Decisions of one head that counted: those that nobody asked for are not among them.

    Args:
        samples: (R,) int64, whose they are.
        steps: (R,) int64, the solver's step.
        seen: what they were made on.
        action: (R,) choice or share.
    """

    samples: Tensor
    steps: Tensor
    seen: Seen
    action: Tensor

    @classmethod
    def joined(cls, parts: list[Taken]) -> Taken:
        """All of these, one at least."""
        seen = [p.seen for p in parts]
        return cls(
            torch.cat([p.samples for p in parts]),
            torch.cat([p.steps for p in parts]),
            Seen(*(torch.cat([getattr(s, name) for s in seen]) for name in ("maps", "numbers", "remaining"))),
            torch.cat([p.action for p in parts]),
        )


def trajectory_log_prob(heads: Heads, taken: Mapping[HeadName, Taken], count: int) -> tuple[Tensor, Tensor]:
    """Log probability and entropy (B,) of the trajectories of `count` samples: sums over the decisions that counted.

    log pi = sum_k [log p_step + log p_cache + 1(not reused) log p_sparse]; what was not asked for adds exactly nothing.
    """
    log_prob, entropy = (torch.zeros(count, dtype=torch.float64) for _ in range(2))
    for head, own in taken.items():
        value, spread = heads.log_prob_and_entropy(head, own.seen, own.action)
        samples = own.samples.cpu()  # in this order: MPS has no float64
        log_prob = log_prob.index_add(0, samples, value.cpu().double())
        entropy = entropy.index_add(0, samples, spread.cpu().double())
    return log_prob, entropy
