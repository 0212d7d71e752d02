"""Learning from rewards in Python: one call each for a table and for a policy that accelerates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..denoisers.checks import checked
from ..denoisers.protocol import Model
from ..pipelines.find import find_table
from ..solvers.table import Table
from . import refine as trainer
from .acceleration_config import AccelerationConfig
from .acceleration_run import run_acceleration
from .closeness import Closeness
from .config import RefineConfig
from .reward import Reward
from .rewards import FunctionReward, load_reward
from .run import refined, run_refine
from .task import Prompted, Score, Task, no_text, score_of

RewardLike = str | Callable[[Tensor, Sequence[str]], Tensor]


def refine(
    model: Model,
    table: Table | str | Path,
    rewards: RewardLike | Mapping[str, RewardLike],
    config: RefineConfig = RefineConfig(),  # noqa: B008 - frozen
    out: Path | str | None = None,
    *,
    resume: bool = False,
    weights: Mapping[str, float] | None = None,
    watched: Mapping[str, RewardLike] | None = None,
    texts: Callable[[Sequence[int]], list[str]] | None = None,
    train: Sequence[int] = (),
    held_out: Sequence[int] = (),
    context: Callable[[Sequence[int]], Tensor] | None = None,
    starts: Sequence[Table] = (),
) -> Table:
    """The table that earns more: maximise E reward over a policy around `table`; the model is never touched.

    The result is the best mean table that was better than the given one beyond doubt on held-out samples, or the given
    one itself. Reference: arXiv 2512.22796.

    Args:
        model: as of `distill`.
        table: where the policy starts: a Table, or where it is (see `find_table`).
        rewards: a function of pictures (B, 3, H, W) in [0, 1] and their prompts that returns (B,), or a name that
            `load_reward` knows, or `closeness`; or several by name.
        config: how many updates, of how many pictures.
        out: folder of the run, as of `epd refine`; none: no files.
        resume: continue the run in `out`.
        weights: of each reward, in standard deviations of the given table's; one where left out.
        watched: recorded on held-out samples without being learned from.
        texts: seeds -> prompts, for rewards; none: the model's own `prompts_of`, where it has one.
        train, held_out: seeds of the conditions to train and to test on, such as numbers of prompts; empty: any.
        context: seeds -> (B, C), what tables depend on, such as an embedding of the prompt; none: one table for all.
            The result is the table of the mean context, where that is better for all together, or the given one;
            `load_policy(out / "policy.safetensors").mean(context)` is that of another context.
        starts: other tables that the policy may start at, with start = 'best'; those of fewer calls are grown.

    Raises:
        RewardError: for a reward that cannot be loaded, or fails.
        ValueError: for a model that `check_model` refuses, a table of another path, or a folder that holds another run.
    """
    table = find_table(table)
    task = task_of(model, rewards, config.dtype, config.tolerance, weights, watched, texts, train, held_out)
    task = dataclasses.replace(task, context=context, starts=tuple(starts))
    if out is not None:
        path = run_refine(task, table, config, Path(out), resume)
        assert path is not None, "only a dry run has no table"
        return Table.load(path)
    if resume:
        raise ValueError("resume = True needs out=, the folder of the run that is continued")
    *_, last = trainer.refine(task, table, config)
    return refined(task, table, config, last.state)


def refine_acceleration(
    model: Model,
    rewards: RewardLike | Mapping[str, RewardLike],
    config: AccelerationConfig = AccelerationConfig(),  # noqa: B008 - frozen
    out: Path | str = "runs/acceleration",
    *,
    table: Table | None = None,
    resume: bool = False,
    weights: Mapping[str, float] | None = None,
    watched: Mapping[str, RewardLike] | None = None,
    texts: Callable[[Sequence[int]], list[str]] | None = None,
    train: Sequence[int] = (),
    held_out: Sequence[int] = (),
    features: Callable[[Tensor], Tensor] | None = None,
) -> Path:
    """Learns which network calls can be left out, for each sample on its own; returns the file for `epd.RAPID3`.

    Maximise E q f(K) over small heads that decide how far to jump and whether to take a slope again; q is the reward, K
    the calls of a sample, f(K) = (1 - decay^K) / (K (1 - decay)). The model is never touched. The result is the best
    policy that earned more than the plain solver beyond doubt, or one that computes everything. Reference: arXiv
    2509.22323, arXiv 2412.01243.

    Args:
        model: as of `distill`.
        rewards, weights, watched, texts, train, held_out: as of `refine`.
        config: how many updates, of how many trajectories.
        out: folder of the run, as of `epd refine-acceleration`.
        table: the plain solver, which asks once a step; none: Euler on the config's grid.
        resume: continue the run in `out`.
        features: pictures (B, 3, H, W) in [0, 1] -> (B, F), such as a CLIP tower's; for the config's discriminator.

    Raises:
        RewardError: for a reward that cannot be loaded, or fails.
        ValueError: for a model that `check_model` refuses, another table, or a folder that holds another run.
    """
    task = task_of(model, rewards, config.dtype, config.tolerance, weights, watched, texts, train, held_out)
    path = run_acceleration(task, table, config, Path(out), resume, features=features)
    assert path is not None, "only a dry run has no policy"
    return path


def task_of(
    model: Model,
    rewards: RewardLike | Mapping[str, RewardLike],
    dtype: str,
    tolerance: float,
    weights: Mapping[str, float] | None,
    watched: Mapping[str, RewardLike] | None,
    texts: Callable[[Sequence[int]], list[str]] | None,
    train: Sequence[int],
    held_out: Sequence[int],
) -> Task:
    """The model, checked, with its rewards; arguments are those of `refine`."""
    limited = checked(model, getattr(torch, dtype))
    if texts is None:
        texts = limited.model.prompts_of if isinstance(limited.model, Prompted) else no_text
    named = rewards if isinstance(rewards, Mapping) else {_name(rewards): rewards}
    return Task(
        model=limited,
        scores={name: score(reward, limited, tolerance, name) for name, reward in named.items()},
        weights=dict(weights or {}),
        watched={name: score(reward, limited, tolerance, name) for name, reward in (watched or {}).items()},
        texts=texts,
        train=tuple(train),
        held_out=tuple(held_out),
    )


def _name(reward: RewardLike) -> str:
    return reward if isinstance(reward, str) else getattr(reward, "__name__", type(reward).__name__)


def reward_of(reward: RewardLike, device: str, name: str = "", beside: Sequence[str] = ()) -> Reward:
    """A reward by its name, or a function as one. For errors: the function's `name`, and `beside` of `load_reward`."""
    return load_reward(reward, device, beside) if isinstance(reward, str) else FunctionReward(name, reward)


def score(reward: RewardLike, model: Model, tolerance: float, name: str = "") -> Score:
    """What a reward, its name or `closeness` is as a score of rollouts.

    Args:
        tolerance: of the converged end points that closeness is measured from.
        name: of a function, for errors; a name stands for itself.
    """
    if reward == Closeness.name:
        return Closeness(model, tolerance)
    return score_of(reward_of(reward, model.device, name, (Closeness.name,)))
