"""Refining from Python in one call, and tables that depend on a context."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.toy_refine import toy_refine_config, toy_table, toy_task
from torch import Tensor

import epd
from epd.rl.refine import refine


def constant(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.full((len(images),), 0.3)


def test_refine_in_one_call_is_the_run_of_the_command(tmp_path: Path) -> None:
    config = toy_refine_config(steps=12, lr=0.02, evaluate_every=4)
    model = toy_task().model
    written = epd.refine(model, toy_table(), "closeness", config, tmp_path / "run")
    assert written == epd.refine(model, toy_table(), {"closeness": "closeness"}, config)
    assert written != toy_table() and written.provenance.parent == toy_table().digest
    assert epd.refine(model, toy_table(), constant, config) == toy_table()
    with pytest.raises(ValueError, match="needs out="):
        epd.refine(model, toy_table(), constant, config, resume=True)


def test_tables_that_depend_on_a_context_are_each_prompts_own(tmp_path: Path) -> None:
    """Contrast for one half of the conditions and none for the other: one table cannot do both."""

    def context(seeds: Sequence[int]) -> Tensor:
        return torch.tensor([[1.0 if seed % 2 else -1.0] for seed in seeds])

    def strong_or_weak(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return context([int(text) for text in prompts])[:, 0] * (images.double() - 0.5).abs().mean((1, 2, 3))

    config = toy_refine_config(steps=25, lr=0.02, evaluate_every=25, groups=8, converged=0, held_out=128)
    conditions = {"train": (0, 1), "held_out": (0, 1), "texts": lambda seeds: [str(seed) for seed in seeds]}
    rewards: dict[str, object] = {"strong-or-weak": strong_or_weak}
    own = replace(toy_task(rewards), context=context, **conditions)
    one = replace(toy_task(rewards), **conditions)
    gains = []
    for task in (own, one):
        *_, last = refine(task, toy_table(), config)
        assert last.evaluation is not None
        gains.append(last.evaluation.interval.mean)
    assert gains[0] > 0.1 and gains[0] > 2 * abs(gains[1]), gains
    model, out = own.model, tmp_path / "run"
    learned = epd.refine(model, toy_table(), strong_or_weak, config, out, context=context, **conditions)  # type: ignore[arg-type]
    policy = epd.load_policy(out / "policy.safetensors")
    # One table for all is exported only where it was better, too.
    one_passed = json.loads((out / "report.json").read_text())["refined"]
    assert learned.digest == (policy.mean(torch.zeros(1, 1)) if one_passed else toy_table()).digest
    assert policy.mean(torch.ones(1, 1)).digest != policy.mean(-torch.ones(1, 1)).digest
