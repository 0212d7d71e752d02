"""A run's folder and the loop around a trainer, with a trainer that is no distillation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from epd.runs import follow
from epd.runs.checkpoint import Checkpoint, RunError, load_checkpoint, save_checkpoint
from epd.runs.folder import Folder, Held, difference
from epd.runs.follow import Entry
from epd.runs.processes import Workers

TOTAL = 6


@dataclass(frozen=True)
class Walked:
    """A random walk after so many steps."""

    done: int
    place: Tensor


def walk(start: Walked, seed: int, stop: int | None = None) -> Iterator[Walked]:
    """A trainer: its noise follows from the seed and the step; Ctrl-C comes after step `stop`."""
    here = start
    while here.done < TOTAL:
        if here.done == stop:
            raise KeyboardInterrupt
        noise = torch.randn(3, generator=torch.Generator().manual_seed(100 * seed + here.done), dtype=torch.float64)
        here = Walked(here.done + 1, here.place + noise)
        yield here


def entry(here: Walked) -> Entry:
    return Entry(
        iteration=here.done,
        total=TOTAL,
        scalars={"place/first": float(here.place[0]), "place/lost": float("nan")},
        line={"first": float(here.place[0])},
        shown={},
        checkpoint=lambda: Checkpoint({"place": here.place}, {"done": here.done}),
    )


def trained(path: Path, seed: int = 0, resume: bool = False, stop: int | None = None) -> bytes:
    """All that a trainer needs to write around its own generator."""
    folder = Folder(path, {"seed": seed, "kind": "walk"})
    held = folder.held(resume)
    if not held.finished:
        folder.begin()
        start = Walked(0, torch.zeros(3, dtype=torch.float64))
        if held.checkpoint is not None:
            start = Walked(held.checkpoint.numbers["done"], held.checkpoint.tensors["place"])
        last = follow.follow(walk(start, seed, stop), entry, folder, Workers(), start.done, TOTAL) or start
        folder.finish(json.dumps(last.place.tolist()))
    return folder.table.read_bytes()


def test_any_trainer_resumes_bit_for_bit_and_its_records_go_on(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    for stop in (1, 3, 5):
        out = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            trained(out, stop=stop)
        with open(out / "history.jsonl", "a") as file:
            file.write('{"iteration": 6, "first": 0.0}\n{"itera')  # recorded after the checkpoint, and half a line
        assert trained(out, resume=True) == whole
        history = (out / "history.jsonl").read_text()
        assert history == (tmp_path / "whole" / "history.jsonl").read_text() and history.count("\n") == TOTAL


def test_a_run_killed_between_its_last_update_and_its_result_needs_no_update(tmp_path: Path) -> None:
    whole = trained(tmp_path)
    (tmp_path / "solver.json").unlink()
    assert trained(tmp_path, resume=True) == whole


@pytest.mark.parametrize("resume", [False, True])
def test_a_config_of_something_else_is_not_overwritten(tmp_path: Path, resume: bool) -> None:
    """Such as the config.json of a model whose folder was given as --out."""
    for text in ('{"model_type": "clip"}', "[]", "{"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(RunError, match="another --out"):
            trained(tmp_path, resume=resume)
        assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("config.json", text)]


def test_a_run_that_came_to_nothing_is_begun_anew_and_not_resumed_as_another(tmp_path: Path) -> None:
    """Its teacher failed, say: other options may use the folder, but not as a continuation."""
    Folder(tmp_path, {"seed": 1, "kind": "walk"}).begin()
    with pytest.raises(RunError, match="config.json is of another run: seed was 1, is 0"):
        trained(tmp_path, resume=True)
    trained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


@pytest.mark.parametrize("config", [None, "{"])
def test_a_checkpoint_says_whose_folder_it_is_where_the_config_cannot(tmp_path: Path, config: str | None) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop=3)
    path = tmp_path / "config.json"
    before = path.read_bytes()
    path.unlink() if config is None else path.write_text(config)
    with pytest.raises(RunError, match="checkpoint.safetensors is of another run: seed was 0, is 1"):
        trained(tmp_path, seed=1, resume=True)
    trained(tmp_path, resume=True)
    assert path.read_bytes() == before


def test_config_and_checkpoint_of_two_runs_are_not_gone_on_with(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / name, seed, stop=3)
    (tmp_path / "a" / "config.json").write_bytes((tmp_path / "b" / "config.json").read_bytes())
    for seed in (0, 1):
        with pytest.raises(RunError, match="is of another run"):
            trained(tmp_path / "a", seed, resume=True)


def test_a_result_that_another_process_wrote_meanwhile_is_left(tmp_path: Path) -> None:
    folder = Folder(tmp_path, {"seed": 0})
    assert folder.held(resume=True) == Held()
    folder.begin()
    folder.table.write_text("theirs")
    with pytest.raises(RunError, match="was written by another process in the meantime and is left"):
        folder.finish("ours")
    assert folder.table.read_text() == "theirs"


def test_what_a_checkpoint_holds_comes_back_exactly(tmp_path: Path) -> None:
    shared = torch.tensor([1 / 3, 1e-300], dtype=torch.float64)
    numbers: dict[str, Any] = {"best": float("inf"), "third": 1 / 3, "none": None, "deep": {"list": [1, 2]}}
    tensors = {"a": shared, "b": shared, "none": torch.zeros(0)}
    save_checkpoint(tmp_path / "c", Checkpoint(tensors, numbers), {"seed": 3})
    checkpoint, identity = load_checkpoint(tmp_path / "c")
    assert checkpoint.numbers == numbers and identity == {"seed": 3}
    assert torch.equal(checkpoint.tensors["a"], shared) and torch.equal(checkpoint.tensors["b"], shared)


def test_the_first_difference_is_named() -> None:
    was: dict[str, Any] = {"a": 1, "b": {"c": [1, 2], "d": 3}, "old": 0}
    assert difference(was, was) == ""
    assert difference(was, {**was, "b": {"c": [1, 3], "d": 4}}) == "b.c was [1, 2], is [1, 3]"
    assert difference(was, {"a": 1, "b": was["b"]}) == "old was 0, is None"
    assert difference({}, {"new": 2}) == "new was None, is 2"
