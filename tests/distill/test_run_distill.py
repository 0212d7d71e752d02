"""A distillation in its folder: nothing is overwritten, damage is one clear error, a dry run leaves nothing."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from helpers.toy_models import toy_config, toy_mixture
from torch import Tensor

from epd import GaussianMixture, Table
from epd.distill.run import run_distill
from epd.runs.checkpoint import Checkpoint, RunError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EPD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Broken(GaussianMixture):
    """The toy model with a fault."""

    fault = "nan"

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        out = super().__call__(x, sigma)
        return out * math.nan if self.fault == "nan" else out[:, :, :1]

    def for_seeds(self, seeds: Sequence[int]) -> GaussianMixture:
        return self


@pytest.mark.parametrize(("fault", "error"), [("nan", FloatingPointError), ("shape", ValueError)])
@pytest.mark.parametrize("teacher", ["exact", "heun"])
def test_broken_networks_are_one_clear_error_and_leave_nothing(
    fault: str, error: type[Exception], teacher: str, cache: Path, tmp_path: Path
) -> None:
    model = Broken(torch.zeros(1, 1, 2, 2), 0.2, sigma_min=0.02, sigma_max=20.0)
    model.fault = fault
    with pytest.raises(error, match="NaN or infinity|shape"):
        run_distill(model, toy_config(teacher=teacher), tmp_path / "run")
    assert not list(cache.rglob("*.safetensors")) and not (tmp_path / "run" / "solver.json").exists()


def run(out: Path, **changes: object) -> Path:
    resume = bool(changes.pop("resume", False))
    path = run_distill(toy_mixture(), toy_config(family="epd", **changes), out, resume=resume)
    assert path is not None
    return path


def test_a_run_folder_holds_everything(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    table = Table.load(run(tmp_path / "a"))
    assert table.provenance.model == "toy" and table.provenance.config["family"] == "epd"
    lines = (tmp_path / "a" / "history.jsonl").read_text().splitlines()
    events = EventAccumulator(str(tmp_path / "a" / "tb")).Reload()
    tags = events.Tags()["scalars"]
    assert {"losses/train_rmse", "losses/validation_rmse", "nodes/step1/0", "weights/step0/1", "sigmas/step0/0"} <= set(
        tags
    )
    assert [e.step for e in events.Scalars("losses/train_rmse")] == list(range(1, len(lines) + 1))


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    before = run(tmp_path / "a").read_bytes()
    with pytest.raises(RunError, match="already holds a run: add --resume"):
        run(tmp_path / "a")
    assert run(tmp_path / "a", resume=True).read_bytes() == before  # finished: left as it is
    with pytest.raises(RunError, match="config.seed was 0, is 1"):
        run(tmp_path / "a", seed=1, resume=True)
    assert (tmp_path / "a" / "solver.json").read_bytes() == before


@pytest.mark.parametrize("lost", ["checkpoint.safetensors", "config.json", "both"])
def test_resume_with_a_missing_file_never_overwrites_a_finished_table(tmp_path: Path, lost: str) -> None:
    """A lost checkpoint, a lost identity, a lost pair, each with the same options and with others."""
    before = run(tmp_path / "a").read_bytes()
    for name in ("checkpoint.safetensors", "config.json") if lost == "both" else (lost,):
        (tmp_path / "a" / name).unlink()
    files = sorted((p.name, p.read_bytes()) for p in (tmp_path / "a").iterdir() if p.is_file())
    message = "nothing says which run this is: choose another --out" if lost == "both" else "config.seed was 0, is 1"
    with pytest.raises(RunError, match=message):
        run(tmp_path / "a", seed=1, resume=True)
    if lost == "both":
        with pytest.raises(RunError, match=message):
            run(tmp_path / "a", resume=True)
    else:
        assert run(tmp_path / "a", resume=True).read_bytes() == before
    assert sorted((p.name, p.read_bytes()) for p in (tmp_path / "a").iterdir() if p.is_file()) == files


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "nan", "text"])
def test_a_damaged_checkpoint_is_one_clear_error_that_asks_for_no_deletion(tmp_path: Path, damage: str) -> None:
    before = run(tmp_path / "a").read_bytes()
    path = tmp_path / "a" / "checkpoint.safetensors"
    data = path.read_bytes()
    nan = torch.tensor(math.nan, dtype=torch.float64).numpy().tobytes()
    path.write_bytes(
        {
            "cut": data[: len(data) // 2],
            "noise": bytes(255 - b for b in data),
            "empty": b"",
            "nan": data[:-8] + nan,
            "text": b"{}" * 500,
        }[damage]
    )
    assert run(tmp_path / "a", resume=True).read_bytes() == before  # finished: nobody needs the checkpoint
    (tmp_path / "a" / "solver.json").unlink()
    with pytest.raises(RunError, match="damaged .*another --out") as error:
        run(tmp_path / "a", resume=True)
    assert "delete" not in str(error.value)
    assert not (tmp_path / "a" / "solver.json").exists()


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from epd.runs import follow

    whole = run(tmp_path / "whole").read_bytes()
    real, written = follow.save_checkpoint, []

    def full(path: Path, checkpoint: Checkpoint, identity: Mapping[str, object]) -> None:
        written.append(path)
        if len(written) > 1:
            monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        real(path, checkpoint, identity)

    monkeypatch.setattr(follow, "save_checkpoint", full)
    monkeypatch.setattr(follow, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(OSError, match="could not write .* what was there before is unchanged"):
        run(tmp_path / "a")
    monkeypatch.undo()
    monkeypatch.setenv("EPD_CACHE", str(tmp_path / "cache"))
    assert not list((tmp_path / "a").glob(".*")) and not (tmp_path / "a" / "solver.json").exists()
    assert run(tmp_path / "a", resume=True).read_bytes() == whole


def test_dry_run_computes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    assert run_distill(toy_mixture(), toy_config(), tmp_path / "a", dry_run=True) is None
    text = capsys.readouterr().out
    assert "3 sequential calls" in text and "training evaluations" in text and "seconds" in text
    assert not (tmp_path / "a").exists() and not cache.exists()
