"""`epd distill`: what the command adds to the trainer."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.command import Run

from epd import cli
from epd.commands.inputs import command_line
from epd.pipelines import loading
from epd.pipelines.options import ModelOptions
from epd.runs.processes import Workers
from epd.solvers.table import Table

QUICK = ["--inspect", "0", "--model", "digits-exact", "--calls", "3", "--pool", "64", "--batch", "64"]
QUICK += ["--accumulate", "1"]
QUICK += ["--validation", "64", "--iterations", "2", "--screening", "1", "--schedule", "polynomial"]


def test_a_dry_run_leaves_nothing(run: Run, cache: Path, tmp_path: Path) -> None:
    code, out, _ = run("distill", *QUICK, "--out", tmp_path / "x", "--dry-run")
    assert code == cli.OK and "3 sequential calls" in out
    assert not (tmp_path / "x").exists() and not cache.exists()


def test_distill_leaves_a_table_that_sample_takes(run: Run, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    code, _, err = run("distill", *QUICK, "--out", out)
    assert code == cli.OK and "epd table show" in err
    learned = Table.load(out / "solver.json")
    assert learned.depth == 3 and learned.provenance.model == "digits-exact"
    assert run("sample", "--model", "digits-exact", "--table", out, "-n", "2", "--out", tmp_path / "s")[0] == cli.OK
    code, _, err = run("distill", *QUICK, "--out", out)
    assert code == cli.FAILED and "--resume" in err
    assert run("distill", *QUICK, "--out", out, "--resume")[0] == cli.OK
    assert Table.load(out / "solver.json") == learned


def test_a_table_that_scales_guidance_goes_through_every_command(run: Run, cache: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "x", ["--model", "digits-exact", "--labels", "0", "7", "--guidance", "2"]
    words = [*QUICK, *model[2:], "--learn-guidance", "--inspect", "2"]
    assert run("distill", *words, "--out", out)[0] == cli.OK
    learned = Table.load(out / "solver.json")
    assert not (learned.anchor_guidance == 1).all() and [*(out / "tb").rglob("events*")]
    assert run("inspect", *model, "--table", out, "--samples", "2", "--logdir", tmp_path / "i")[0] == cli.OK
    assert run("sample", *model, "--table", out, "-n", "2", "--out", tmp_path / "s")[0] == cli.OK
    few = ["--samples", "8", "--calls", "3", "--solvers", "Euler", "--out", out / "compare"]
    assert run("compare", *model, "--tables", out, *few)[0] == cli.OK
    assert run("report", out, "--out", tmp_path / "report.html")[0] == cli.OK
    code, _, err = run("sample", "--model", "digits-exact", "--table", out, "-n", "2", "--out", tmp_path / "u")
    assert code == cli.FAILED and "guidance" in err


def test_several_points_are_learned_from_the_same_teacher(run: Run, cache: Path, tmp_path: Path) -> None:
    code, _, err = run("distill", *QUICK, "--points", "2,1", "--out", tmp_path)
    assert code == cli.OK
    tables = [Table.load(tmp_path / f"{k}-points" / "3-calls" / "solver.json") for k in (1, 2)]
    assert [(table.depth, table.nfe) for table in tables] == [(3, 3), (3, 6)]
    assert len(list((cache / "teachers").iterdir())) == 1
    tables = [f"{tmp_path}/{k}-points/3-calls/solver.json" for k in (1, 2)]
    assert f"--tables {' '.join(tables)} --calls 3" in err


def test_a_finished_table_that_is_damaged_is_not_called_finished(run: Run, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    assert run("distill", *QUICK, "--out", out)[0] == cli.OK
    whole = (out / "solver.json").read_bytes()
    (out / "solver.json").write_bytes(whole[: len(whole) // 2])
    code, _, err = run("distill", *QUICK, "--out", out, "--resume")
    assert code == cli.FAILED and "its table is damaged" in err and "--resume makes it again" in err, err
    (out / "solver.json").rename(tmp_path / "damaged.json")
    assert run("distill", *QUICK, "--out", out, "--resume")[0] == cli.OK
    assert (out / "solver.json").read_bytes() == whole


def test_the_commands_to_go_on_with_are_for_the_same_model(
    run: Run, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where they write, unless they are told otherwise
    options = ["--labels", "1", "2", "--guidance", "2.0"]
    code, _, err = run("distill", *QUICK, *options, "--out", tmp_path / "it's my run")
    heads = ("look: ", "sample: ", "compare: ")
    look, *lines = [shlex.split(line.split(": ", 1)[1]) for line in err.splitlines() if line.startswith(heads)]
    assert code == cli.OK and [line[1] for line in lines] == ["sample", "compare"], err
    assert run(*look[1:])[0] == cli.OK
    for line in lines:
        assert line[2:9] == ["--model", "digits-exact", *options]
        few = ["--samples", "4", "--solvers", "Euler"] if line[1] == "compare" else ["-n", "2"]
        assert run(*line[1:], *few)[0] == cli.OK


def test_options_are_typed_as_they_were_given() -> None:
    options = ModelOptions(prompt=("a red fox", "it's"), options={"clean": False}, num_frames=4, local_only=True)
    typed = command_line("a model", options)
    words = ["--prompt", "a red fox", "it's", "--num-frames", "4", "--options", '{"clean": false}', "--local-only"]
    assert shlex.split(typed) == ["a model", *words] and command_line("digits", ModelOptions()) == "digits"


def test_a_run_is_not_continued_under_other_conditions(run: Run, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    assert run("distill", *QUICK, "--labels", "1", "2", "--out", out)[0] == cli.OK
    before = (out / "solver.json").read_bytes()
    code, _, err = run("distill", *QUICK, "--labels", "1", "3", "--out", out, "--resume")
    assert code == cli.FAILED and "conditions.labels was [1, 2], is [1, 3]; use the same options" in err
    assert run("distill", *QUICK, "--labels", "1", "2", "--device", "cpu", "--out", out, "--resume")[0] == cli.OK
    assert (out / "solver.json").read_bytes() == before


def test_processes_start_before_the_model_is_loaded_onto_a_device(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two processes on two devices: the second loads its model onto the second device, not onto the first."""
    happened: list[object] = []

    def loaded(name: str, options: ModelOptions) -> None:
        happened.append(options.device)
        raise ValueError("enough")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(Workers, "of_accelerate", lambda: happened.append("processes") or Workers())
    monkeypatch.setattr(loading, "load_model", loaded)
    for words, device in (((), "cuda:1"), (("--device", "cpu"), "cpu"), (("--device-map", "balanced"), None)):
        code, _, err = run("distill", "--model", tmp_path, *words, "--out", tmp_path / "x")
        assert code == cli.FAILED and "enough" in err
        assert happened == ["processes", device]
        happened.clear()


def test_prompts_count_by_what_they_say(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red fox\n\nan owl\n")
    conditions = ModelOptions(prompts=file, device="cpu").conditions()
    assert conditions == ModelOptions(prompt=("a red fox", "an owl")).conditions()
    file.write_text("a red fox\nan owl in snow\n")
    assert ModelOptions(prompts=file).conditions() != conditions and ModelOptions().conditions() == {}


@pytest.mark.slow
def test_an_interrupted_run_is_resumable(tmp_path: Path) -> None:
    words = ["distill", *QUICK[:-6], "--iterations", "200", "--out", tmp_path / "x"]
    command = [sys.executable, "-m", "epd.cli", *map(str, words)]
    environment = os.environ | {"EPD_CACHE": str(tmp_path / "cache")}
    # A shell's background job ignores Ctrl-C and so would its children; this one is to hear it wherever tests run.
    running = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "x" / "checkpoint.safetensors").exists():
        time.sleep(0.02)
        assert running.poll() is None, running.stderr and running.stderr.read()
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert running.returncode == cli.FAILED
    assert err.splitlines()[-1] == "epd: interrupted; add --resume to continue the run"
    assert "Traceback" not in err and not (tmp_path / "x" / "solver.json").exists()


def test_several_runs_do_not_go_into_the_folder_of_one(run: Run, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    assert run("distill", *QUICK, "--out", out)[0] == cli.OK
    before = sorted(path.name for path in out.iterdir())
    for more in (["--points", "1,2"], *(["--calls", "3,4", *flags] for flags in ([], ["--resume"], ["--dry-run"]))):
        code, _, err = run("distill", *QUICK, *more, "--out", out)
        assert code == cli.FAILED and "holds a run of its own, and several would go into folders in it" in err
    assert sorted(path.name for path in out.iterdir()) == before
