"""`epd inspect`, and what training leaves in TensorBoard at its end."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command import Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from epd import cli
from epd.evaluation import inspection_figures

QUICK = ["--samples", "2", "--shown", "3", "--tolerance", "1e-2"]
TRAIN = ["--model", "digits-exact", "--calls", "3", "--pool", "64", "--batch", "64", "--accumulate", "1"]
TRAIN += ["--validation", "64", "--iterations", "2", "--screening", "1", "--schedule", "polynomial"]


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are tested elsewhere and take longer than all else here."""
    monkeypatch.setattr(inspection_figures, "figures_of", lambda _: {})


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), {"images": 0, "scalars": 0, "tensors": 0}).Reload()


def text(events: EventAccumulator, tag: str) -> str:
    return events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()


def test_inspect_says_what_it_found_and_leaves_a_log(run: Run, saved: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ["inspect", "--model", "digits-exact", "--table", saved, "--logdir", log, *QUICK]
    code, out, err = run(*words)
    assert code == cli.OK and f"tensorboard --logdir {log}" in err
    lines = out.splitlines()
    # A saved table is named after its file, or its folder where the file is called solver.json.
    assert lines[0].startswith(f"{tmp_path.name} on digits-exact: 5 sequential calls, 8 evaluations a sample")
    assert [line.split(":")[0] for line in lines[1:]] == ["end", "worst step", "dimension", "directions", "curvature"]
    events = read(log)
    assert text(events, "verdict").replace("    ", "", 1).splitlines()[0] == lines[0]
    assert [e.width for e in events.Images("states/seed_3")] == [2 * 64 + 12] * 4
    assert len(events.Scalars("final/rmse")) == 1


def test_hand_made_solvers_are_inspected_too(run: Run, tmp_path: Path) -> None:
    words = ["--model", "digits-exact-flow", "--rule", "heun", "--calls", "4", "--logdir", tmp_path, *QUICK]
    code, out, _ = run("inspect", *words)
    assert code == cli.OK and out.startswith("heun, 4 calls on digits-exact-flow: 4 sequential calls, 4 evaluations")
    assert {"angle/anchor", "angle/point_1", "angle/update"} <= set(read(tmp_path).Tags()["scalars"])
    code, _, err = run("inspect", "--model", "digits-exact")
    assert code == cli.USAGE and "give exactly one of --table FILE and --rule NAME" in err


def test_training_ends_with_hyperparameters_texts_and_an_inspection(run: Run, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, _, err = run("distill", *TRAIN, "--inspect", "2", "--out", out)
    assert code == cli.OK and "worst step" in err
    events, inspected = read(out / "tb"), read(out / "tb" / "inspect")
    assert "digest" in text(events, "table") and '"pool": 64' in text(events, "config")
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(events.PluginTagToContent("hparams"))
    (final,) = events.Scalars("final/rmse")
    assert final.value == pytest.approx(min(e.value for e in events.Scalars("losses/validation_rmse")))
    measured = [e.step for e in events.Scalars("losses/validation_rmse")]
    assert [e.step for e in events.Images("table")] == measured
    assert len(inspected.Scalars("final/rmse")) == 1
    before = {path.name for path in (out / "tb" / "inspect").iterdir()}
    assert run("distill", *TRAIN, "--inspect", "2", "--out", out, "--resume")[0] == cli.OK  # finished: left as it is
    assert {path.name for path in (out / "tb" / "inspect").iterdir()} == before
