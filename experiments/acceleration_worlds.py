"""What `bench_acceleration` learns on and measures on: `two-kinds`, `digits`, prompts of `shapes`, `shapes-32`."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..accelerators.heads import Heads
from ..commands.inputs import texts_of
from ..denoisers.digits import classes_of, digits, digits_classifier
from ..denoisers.protocol import Model
from ..denoisers.rows import RowLimited, limit_rows
from ..denoisers.shapes_32 import shapes_32
from ..denoisers.shapes_verifier import verify
from ..denoisers.shapes_world import parse, prompts
from ..pipelines.options import ModelOptions
from ..rl.acceleration import grid_table
from ..rl.acceleration_config import AccelerationConfig
from ..rl.acceleration_rollout import Trip, travel, with_network
from ..rl.closeness import Closeness
from ..rl.discriminator import Features
from ..rl.task import Draws, Rollout, Task, no_text
from ..solvers.registry import SIMPLEST, Ends, Schedule, make_rule, make_sigmas
from ..solvers.walk import Rule
from .refined_cells import REWARD, SUBJECTS, WATCHED, prompted
from .two_kinds import two_kinds

SAMPLES, BLOCK, TOLERANCE = 256, 64, 1e-3


@dataclass(frozen=True)
class World:
    """A model, and how a policy is learned on it.

    Args:
        schedule: of the plain solver.
        grid: its steps.
        reward, watched: as of `refine_acceleration`.
        metric: the number that solvers are compared by, of `Judge.told`.
        learning: what differs from the benchmark's usual settings.
        features: of pictures, where a discriminator learns beside the policy.
        tables: learned ones to compare with, by their sequential calls: files of other benchmarks' results, or HERE,
            as `epd distill --points 1` learns them.
    """

    schedule: Schedule
    grid: int
    reward: str
    metric: Literal["rmse", "graded"]
    features: Features
    watched: tuple[str, ...] = ()
    learning: dict[str, Any] = field(default_factory=dict)
    tables: dict[int, str] = field(default_factory=dict)

    def score(self, told: Mapping[str, float]) -> float:
        """By the metric; larger is better."""
        return -told[self.metric] if self.metric == "rmse" else told[self.metric]


def seen_by_the_judge(images: Tensor) -> Tensor:
    """(B, 64) of pictures of digits: what the classifier sees in them."""
    with torch.no_grad():
        return digits_classifier().features(images[:, :1] * 2 - 1)


def where_is_which_colour(images: Tensor) -> Tensor:
    """(B, 192) of pictures of things: the means of 8 x 8 places."""
    return functional.adaptive_avg_pool2d(images, 8).flatten(1)


def as_they_are(images: Tensor) -> Tensor:
    """(B, F) of small pictures: their pixels."""
    return images.flatten(1)


HERE = "learned here"
FEW = {"groups": 32, "group_size": 4}
WORLDS = {
    "two-kinds": World("logsnr", 24, Closeness.name, "rmse", as_they_are, tables={3: HERE}),
    "digits": World(
        "logsnr", 24, Closeness.name, "rmse", seen_by_the_judge,
        tables={calls: f"learned/digits/dense-1-{calls}-0.json" for calls in (5, 7, 9)},
    ),
    "shapes": World(
        "flow", 20, REWARD, "graded", where_is_which_colour, WATCHED[:1], FEW,
        {calls: f"refined/shapes/refined-{calls}-0.json" for calls in (3, 4, 5)},
    ),
    "shapes-32": World(
        "logsnr", 20, REWARD, "graded", where_is_which_colour, WATCHED[:1], {**FEW, "block": 16},
        {calls: f"together/shapes-32/plain-{calls}-0.json" for calls in (5, 6, 7)},
    ),
}  # fmt: skip


class Judge(ABC):
    """Fresh samples, their converged end points and kinds, and the same noise for all solvers.

    Args:
        model: bound by the draws' conditions.
        schedule: of the plain solver.
        draws: the samples.
        kinds: of each sample, for people.
        texts: conditions -> prompts.
    """

    def __init__(
        self,
        model: RowLimited,
        schedule: Schedule,
        draws: Draws,
        kinds: Sequence[str],
        texts: Callable[[Sequence[int]], list[str]] = no_text,
    ) -> None:
        self._closeness = Closeness(model, TOLERANCE)
        self.task = with_network(Task(model, {Closeness.name: self._closeness}, texts=texts))
        self.schedule, self.draws, self.kinds = schedule, draws, tuple(kinds)

    @property
    def taught(self) -> Model:
        """The model whose seeds stand for conditions of training, for a schedule that a teacher chooses."""
        return self.task.model

    def sigmas(self, steps: int) -> Tensor:
        """Levels of the plain solver of so many steps."""
        return make_sigmas(self.schedule, steps, Ends.of(self.task.model))

    def solved(self, sigmas: Tensor, rule: Rule | None = None) -> list[Rollout]:
        """The samples on these levels, block by block; Euler's where no rule is given."""
        rule = make_rule(SIMPLEST) if rule is None else rule
        return [self.task.solved(rule, sigmas, part) for part in self._blocks()]

    def travelled(self, heads: Heads, config: AccelerationConfig) -> list[Trip]:
        """The samples under a policy's likeliest choices, block by block."""
        table = grid_table(self.task.model, config)
        return [travel(self.task, table, heads, part, None, torch.float32) for part in self._blocks()]

    def told(self, blocks: Sequence[Rollout]) -> dict[str, float]:
        """RMSE to the converged end points, and what the world's own verifier says."""
        distances = torch.cat([-self._closeness(block) for block in blocks])
        return {"rmse": float(distances.square().mean().sqrt()), **self.verified(blocks)}

    @abstractmethod
    def verified(self, blocks: Sequence[Rollout]) -> dict[str, float]:
        """Means of what can be checked of these samples, by name."""

    def _blocks(self) -> Iterator[Draws]:
        for first in range(0, len(self.draws), BLOCK):
            yield self.draws[first : first + BLOCK]


class KindsJudge(Judge):
    """Closeness alone."""

    def __init__(self) -> None:
        seeds = tuple(range(20_000, 20_000 + SAMPLES))
        model = two_kinds()
        super().__init__(limit_rows(model), WORLDS["two-kinds"].schedule, Draws(seeds, seeds), model.prompts_of(seeds))

    def verified(self, blocks: Sequence[Rollout]) -> dict[str, float]:
        return {}


class DigitsJudge(Judge):
    """A classifier that nobody learned from says how sure it is of the class that was asked for. Unguided."""

    def __init__(self) -> None:
        seeds = tuple(range(20_000, 20_000 + SAMPLES))
        kinds = [str(k) for k in classes_of(seeds).tolist()]
        super().__init__(limit_rows(digits()), WORLDS["digits"].schedule, Draws(seeds, seeds), kinds)
        self._classifier = digits_classifier()

    def verified(self, blocks: Sequence[Rollout]) -> dict[str, float]:
        with torch.no_grad():
            sure = self._classifier(torch.cat([block.states for block in blocks]).float()).softmax(1)
        return {"sure": float(sure.gather(1, classes_of(self.draws.conditions)[:, None]).mean())}


class ThingsJudge(Judge):
    """The verifier's scores."""

    def verified(self, blocks: Sequence[Rollout]) -> dict[str, float]:
        images = torch.cat([block.images for block in blocks]).clamp(0, 1)
        verdict = verify(images, [text for block in blocks for text in block.prompts])
        return {"graded": float(verdict.graded.mean()), "all": float(verdict.all.float().mean())}


class ShapesJudge(ThingsJudge):
    """Prompts of one thing and held-out ones of two, in turn."""

    def __init__(self) -> None:
        texts, ones, twos = shapes_prompts()
        pairs = [(ones[i % len(ones)], twos[i % len(twos)]) for i in range(SAMPLES // 2)]
        conditions = [number for pair in pairs for number in pair]
        kinds = ("one thing", "two things") * len(pairs)
        model = prompted("shapes", SUBJECTS["shapes"].guidance, texts)
        draws = Draws(tuple(conditions), tuple(range(20_000, 20_000 + SAMPLES)))
        schedule = WORLDS["shapes"].schedule
        super().__init__(model, schedule, draws, kinds, lambda seeds: [texts[seed] for seed in seeds])

    @property
    def taught(self) -> Model:
        return SUBJECTS["shapes"].training_model()


class Shapes32Judge(ThingsJudge):
    """The classes of `shapes-32` in turn, half of them of one thing. Unguided."""

    def __init__(self) -> None:
        seeds, model = tuple(range(20_000, 20_000 + SAMPLES)), limit_rows(shapes_32())
        texts = texts_of(model, "shapes-32", ModelOptions())
        kinds = ["one thing" if len(parse(text).things) == 1 else "two things" for text in texts(seeds)]
        super().__init__(model, WORLDS["shapes-32"].schedule, Draws(seeds, seeds), kinds, texts)


@functools.cache
def shapes_prompts() -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    """All prompts; the numbers of those of one thing, and of held-out ones of two."""
    train, held_out = prompts("train"), prompts("held-out")
    texts = (*train, *held_out)
    ones = tuple(i for i, text in enumerate(texts) if len(parse(text).things) == 1)
    return texts, ones, tuple(range(len(train), len(texts)))


JUDGES: dict[str, Callable[[], Judge]] = {
    "two-kinds": KindsJudge, "digits": DigitsJudge, "shapes": ShapesJudge, "shapes-32": Shapes32Judge,
}  # fmt: skip


def learning(name: str) -> tuple[Model, dict[str, Any]]:
    """A world's model, and the arguments by which `refine_acceleration` is told its prompts."""
    unprompted: dict[str, Callable[[], Model]] = {"two-kinds": two_kinds, "digits": digits}
    if name in unprompted:
        return unprompted[name](), {}
    if name == "shapes-32":
        model = shapes_32()
        return model, {"texts": texts_of(limit_rows(model), name, ModelOptions())}
    texts, ones, held_out = shapes_prompts()
    twos = [i for i in range(len(texts) - len(held_out)) if i not in ones]
    # As many draws of one thing as of two, of which there are far more prompts.
    train = (*twos, *(ones * (len(twos) // len(ones))))
    return prompted("shapes", SUBJECTS["shapes"].guidance, texts).model, {
        "texts": lambda seeds: [texts[seed] for seed in seeds],
        "train": train,
        "held_out": [number for i, two in enumerate(held_out) for number in (two, ones[i % len(ones)])],
    }  # fmt: skip
