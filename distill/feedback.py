"""Learns inner-loop feedback for a frozen network from a teacher's trajectories, as a generator of typed records."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..accelerators.accelerate import accelerate, accelerators_of, networks_of
from ..accelerators.contract import Live
from ..accelerators.feedback_block import Feedback, Loop, Trained, own_copy
from ..accelerators.ilf import Feeding, blocks_of
from ..accelerators.moment import Moment, Work
from ..accelerators.site import Site
from ..denoisers.protocol import Model
from ..runs.processes import Workers
from ..solvers.registry import SIMPLEST, make_rule
from ..solvers.solve import solve
from .feedback_config import FeedbackConfig
from .feedback_plan import loop_of, sigmas_of, times_at
from .samples import Samples
from .teacher import POOL_SEEDS, VALIDATION_SEEDS, Teacher, cache_folder

CLIP = 1.0  # largest gradient norm
WARM = 0.05  # share of the updates in which the learning rate rises
TOGETHER = 256  # held-out samples that are solved at once
ADAM = ("exp_avg", "exp_avg_sq")  # how torch calls its moments
Parts = dict[str, Tensor]  # parameters, or what Adam keeps of them, by name


@dataclass(frozen=True)
class FeedbackState:
    """Everything that a run needs to go on, bit for bit; noise and batches follow from the seed and the iteration.

    Args:
        iteration: updates done.
        now: present parameters.
        first, second: Adam's moments of them.
        best: the best on held-out noise so far, with their RMSE.
    """

    iteration: int
    now: Parts
    first: Parts
    second: Parts
    best: Parts
    best_rmse: float


@dataclass(frozen=True)
class FeedbackUpdate:
    """One update: the loss before it, RMSE on held-out noise where it was measured, and what came of it."""

    iteration: int
    total: int
    loss: float
    validation: float | None
    seconds: float
    state: FeedbackState


@dataclass(frozen=True, eq=False)
class Learning:
    """The feedback that is being learned, as an accelerator; no file can name it."""

    feedback: Feedback
    loop: Loop

    def attach(self, site: Site) -> Live:
        return Feeding(site, blocks_of(site.only), self.feedback, self.loop, self.loop.steps)

    def plan(self, calls: Sequence[Moment]) -> list[Work]:
        return [Work(blocks=self.loop.share if now.step in self.loop.steps else 1.0) for now in calls]


class FeedbackTrainer:
    """Minimise E |x_N(feedback; noise) - teacher(noise)|^2 over the block and its scales, nothing else.

    x moves along the slopes that calls with feedback answer with, as Euler does. Reference: arXiv 2501.13107; the
    teacher is the ODE's own trajectory, as a target on a freshly noised picture averages over the pictures.

    Args:
        model: with one network that can have feedback; its weights get no gradient.
        cache: folder of teacher trajectories; none: $EPD_CACHE or ~/.cache/epd.
        workers: processes that share the parts of a batch and the held-out samples; what is learned is the same.

    Raises:
        ValueError: for another network, or a loop that is not in it.
    """

    def __init__(
        self, model: Model, config: FeedbackConfig, cache: Path | None = None, workers: Workers | None = None
    ) -> None:
        self.model, self.config, self.workers = model, config, workers or Workers()
        self.others = accelerators_of(model)
        self.loop, self.sigmas = loop_of(model, config), sigmas_of(model, config, config.steps)
        self.rule = make_rule(SIMPLEST)
        self.feedback = self.workers.together(self._made)
        self.through = config.through(math.prod(model.shape))
        teacher = Teacher(model, config.for_teacher(), self.sigmas, cache or cache_folder(), ends=self.through)
        seeds = range(POOL_SEEDS, POOL_SEEDS + config.pool)
        self.held_out = range(VALIDATION_SEEDS, VALIDATION_SEEDS + config.validation)
        share = self.workers
        for pool in (seeds, self.held_out):
            share.together(lambda at=pool: teacher.prepare(at.start, len(at), share.rank, share.count))
        self.pool = share.together(lambda: Samples(teacher, seeds))
        self.validation = share.together(lambda: Samples(teacher, self.held_out))

    def updates(self, state: FeedbackState | None = None) -> Iterator[FeedbackUpdate]:
        """The rest of the updates; the last one's state has the best parameters."""
        state = state or self.first()
        self._load(state.now)
        optimizer, named = self._optimizer(state), dict(self.feedback.named_parameters())
        total = self.config.iterations
        while state.iteration < total:
            tick = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate(state.iteration, total)
            loss = self._stepped(optimizer, named, state.iteration)
            iteration, rmse = state.iteration + 1, None
            if iteration % self.config.validate_every == 0 or iteration == total:
                rmse = self.rmse(self.loop)
            now = copied(named)
            first, second = ({n: optimizer.state[p][key].clone() for n, p in named.items()} for key in ADAM)
            state = replace(state, iteration=iteration, now=now, first=first, second=second)
            if rmse is not None and rmse < state.best_rmse:
                state = replace(state, best=now, best_rmse=rmse)
            yield FeedbackUpdate(iteration, total, loss, rmse, time.perf_counter() - tick, state)

    def first(self) -> FeedbackState:
        """Before the first update: scales of 0, which are the network as it is."""
        now = copied(dict(self.feedback.named_parameters()))
        zeros = {name: torch.zeros_like(value) for name, value in now.items()}
        return FeedbackState(0, now, zeros, zeros, now, self.rmse(self.loop))

    def finished(self, state: FeedbackState) -> tuple[Feedback, Trained]:
        """What a run leaves: the best parameters, and what was measured of them beside plain steps of equal cost."""
        self._load(state.best)
        plain = math.ceil(self.cost - 1e-9)
        metrics = {
            "validation_rmse": state.best_rmse,
            "cost": self.cost,
            "plain_rmse": self.rmse(None),
            "equal_steps": float(plain),
            "equal_cost_rmse": self.rmse(None, sigmas_of(self.model, self.config, plain)),
        }
        return self.feedback, Trained(self.loop, tuple(self.sigmas.tolist()), self.model.name, metrics)

    @property
    def cost(self) -> float:
        """Of one sample, in plain network calls."""
        return self.loop.num_steps + len(self.loop.steps) * (self.loop.share - 1)

    def loss(self, iteration: int, part: int = 0) -> Tensor:
        """Mean square of a part of one batch; a function of the parameters, the seed, the iteration and the part."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + iteration)
        drawn = torch.randperm(self.config.pool, generator=generator)[: self.config.batch]
        chosen = torch.tensor(self.loop.steps)[torch.randint(len(self.loop.steps), (len(drawn),), generator=generator)]
        size = self.config.batch // self.config.accumulate
        own = slice(part * size, (part + 1) * size)
        rows, chosen = drawn[own].tolist(), chosen[own]
        denoiser = self.model.for_seeds([POOL_SEEDS + row for row in rows])
        noise, states = (values.to(self.model.device) for values in self.pool(rows))
        if self.through:
            with self.attached(self.loop):
                return (solve(self.rule, denoiser, noise, self.sigmas, check=False) - states[-1]).square().mean()
        column = (-1, *[1] * len(self.model.shape))
        levels = torch.stack([self.sigmas[chosen], self.sigmas[chosen + 1]])
        begun = torch.cat([(noise * self.sigmas[0])[None].to(noise.dtype), states])
        each = torch.arange(len(rows))
        x, target = begun[chosen, each], begun[chosen + 1, each]
        first, stride = (level.reshape(column).to(x) for level in (levels[0], levels[1] - levels[0]))
        with self.attached(replace(self.loop, num_steps=1, steps=(0,))):
            moved = solve(self.rule, denoiser, x / first, levels, check=False)
        return ((moved - target) / stride).square().mean()

    def rmse(self, loop: Loop | None, sigmas: Tensor | None = None) -> float:
        """To the teacher's end points on held-out noise; without a loop that of plain steps."""
        sigmas, count = self.sigmas if sigmas is None else sigmas, len(self.held_out)
        starts = range(0, count, TOGETHER)

        def squares(part: int) -> Tensor:
            own = range(count)[starts[part] : starts[part] + TOGETHER]
            noise, states = self.validation(own)
            denoiser = self.model.for_seeds([self.held_out[row] for row in own])
            with torch.no_grad(), self.attached(loop):
                x = solve(self.rule, denoiser, noise.to(self.model.device), sigmas)
            return (x.cpu() - states[-1]).double().square().sum()[None]

        total = float(self.workers.mean(len(starts), 1, squares)) * len(starts)
        return math.sqrt(total / (count * math.prod(self.model.shape)))

    @contextmanager
    def attached(self, loop: Loop | None) -> Iterator[None]:
        """With the feedback in this loop beside the model's other accelerators, which stay alone afterwards."""
        if loop is None:
            yield
            return
        accelerate(self.model, *self.others, Learning(self.feedback, loop))
        try:
            yield
        finally:
            accelerate(self.model, *self.others)

    def _stepped(self, optimizer: torch.optim.Adam, named: dict[str, nn.Parameter], iteration: int) -> float:
        """One update of the optimiser; the loss before it."""
        parameters = list(named.values())

        def part(number: int) -> Tensor:
            loss = self.loss(iteration, number)
            if not bool(loss.isfinite()):
                text = f"the loss is {float(loss.detach())} in update {iteration + 1}: give a smaller lr or scale_lr"
                raise FloatingPointError(text)
            # Of these alone: weights of the network that were not frozen get no gradient.
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            own = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
            return torch.cat([value.detach().double().flatten() for value in (loss, *own)])

        sizes = [p.numel() for p in parameters]
        loss, *means = self.workers.mean(self.config.accumulate, 1 + sum(sizes), part).split([1, *sizes])
        for parameter, mean in zip(parameters, means, strict=True):
            parameter.grad = mean.view(parameter.shape).to(parameter)
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        return float(loss)

    def _made(self) -> Feedback:
        """The block and scales of 0, told how far each step looks ahead: to the geometric mean of its noise levels."""
        network = next(iter(networks_of(self.model).values()))
        block = own_copy(blocks_of(network).modules[self.loop.begin]).float()
        if self.config.start == "random":
            torch.manual_seed(self.config.seed)
            for module in block.modules():
                if isinstance(module, (nn.Linear, nn.Embedding, nn.LayerNorm)):
                    module.reset_parameters()
        middles = (self.sigmas[1:] * self.sigmas[:-1]).sqrt()
        told, ahead = (times_at(self.model, network, levels) for levels in (self.sigmas[:-1], middles))
        return Feedback(block, self.loop.count, told, ahead).to(self.model.device)

    def _load(self, parts: Parts) -> None:
        with torch.no_grad():
            for name, parameter in self.feedback.named_parameters():
                parameter.copy_(parts[name])

    def _optimizer(self, state: FeedbackState) -> torch.optim.Adam:
        scale, block = [self.feedback.scale], list(self.feedback.block.parameters())
        groups = [{"params": block, "peak": self.config.lr}, {"params": scale, "peak": self.config.scale_lr}]
        optimizer = torch.optim.Adam(groups)
        for name, parameter in self.feedback.named_parameters() if state.iteration else ():
            moments = {key: parts[name].to(parameter.device).clone() for key, parts in zip(
                ADAM, (state.first, state.second), strict=True)}  # fmt: skip
            optimizer.state[parameter] = {"step": torch.tensor(float(state.iteration)), **moments}
        return optimizer


def rate(iteration: int, total: int) -> float:
    """The learning rate's share of its peak: it rises from the first updates on, then falls as a cosine does."""
    done, warm = iteration / total, WARM
    if done < warm:
        return 0.1 + 0.9 * done / warm
    return 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))


def copied(named: dict[str, nn.Parameter]) -> Parts:
    """The values as they are."""
    return {name: value.detach().clone() for name, value in named.items()}
