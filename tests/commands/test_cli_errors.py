"""What the command says when something is wrong: a line with value, bound and remedy, and never a traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from helpers.command import Run

from epd import cli
from epd.commands import compare, distill, doctor, evaluate, sample
from epd.runs.processes import ProcessError


def test_every_option_out_of_range_is_a_line_with_value_bound_and_remedy(run: Run) -> None:
    at_least = "Input should be greater than or equal to"
    code, out, err = run("distill", "--batch", "0", "--validation", "0", "--calls", "0")
    assert (code, out) == (cli.USAGE, "") and sorted(err.splitlines()) == [
        f"epd: error: batch = 0: {at_least} 1; or leave it out",
        "epd: error: calls = \"0\": must be a number from 1 to 200, or several, as in 3,5,7,9; the default is \"5\"",
        f"epd: error: validation = 0: {at_least} 1; the default is 1024",
    ]
    code, out, err = run("refine-acceleration", "--heads", "step", "step")  # a fault of no single option
    assert (code, out, err.count("\n")) == (cli.USAGE, "", 1) and err.startswith("epd: error: heads = ['step', 'step']")


@pytest.mark.parametrize(
    "words",
    [
        ["distill", "--model", "digits-exact", "--out"], ["compare", "--model", "digits", "--out"],
        ["sample", "--model", "digits", "--rule", "euler", "--out"], ["evaluate", "--model", "digits", "--out"],
        ["tune", "--model", "digits", "--calls", "3", "--out"], ["inspect", "--model", "digits", "--logdir"],
        ["refine", "--model", "shapes", "--reward", "shapes-all", "--table", "x", "--out"],
        ["refine-acceleration", "--model", "digits", "--reward", "closeness", "--out"],
        ["distill-feedback", "--model", "digits", "--out"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_folder_that_cannot_be_is_told_before_anything_is_loaded(
    words: list[str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a file").write_text("mine")
    option = words[-1].removeprefix("--")
    for place in ("a file", "a file/below/it"):
        code, out, err = run(*words, place)
        assert (code, out, err.count("\n")) == (cli.USAGE, "", 1), err
        assert err.startswith(f'epd: error: {option} = "{place}": ') and "a file is a file, no folder: choose" in err
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "may not be written: choose another folder" in run(*words, "new")[2]
    assert [path.name for path in tmp_path.iterdir()] == ["a file"] and Path("a file").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table", "show", "missing.json"], "missing.json cannot be read"),
        (["table", "show", "sd15-rdpo"], "no published table is named 'sd15-rdpo'"),
        (["table", "show", "old.pkl"], "old.pkl cannot be read"),
        (["table", "convert", "missing.pkl", "out.json"], "missing.pkl cannot be read"),
        (["sample", "--model", "digit", "--rule", "euler"], "no model 'digit': perhaps you meant 'digits'"),
        (["sample", "--model", "digits", "--rule", "euler", "--prompt", "a cat"], "'digits' has no such option"),
        (["sample", "--model", "digits", "--rule", "euler", "--labels", "12"], "classes of 'digits' are 0 to 9"),
        (["sample", "--model", "shapes-32", "--rule", "euler", "--labels", "24"], "classes of 'shapes-32' are 0 to 23"),
        (["sample", "--model", "digits-exact", "--rule", "euler", "--guidance", "3"], "unconditional without labels"),
        (["sample", "--model", "digits-exact-flow", "--table", "solver.json"], "is for a ve path, but"),
        (["sample", "--model", "digits-exact", "--table", "broken.json"], "not valid JSON"),
        (["distill", "--model", "digits-exact", "--init", "solver.json", "--calls", "4"], "calls = 4"),
        (["sample", "--model", "mine.py", "--rule", "euler"], "name the one that returns the model, mine.py:function"),
        (["distill", "-q", "--model", "digits-exact", "--calls", "3", "--points", "1"], "set EPD_CACHE to a folder"),
    ],
)
def test_expected_errors_are_one_line(
    words: list[str], message: str, run: Run, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    Path("broken.json").write_text("{")
    Path("mine.py").write_text("")
    monkeypatch.setenv("EPD_CACHE", "broken.json/cache")
    code, out, err = run(*words)
    assert code == cli.FAILED and not out, err
    assert err.startswith("epd: error: ") and err.count("\n") == 1 and message in err


def test_a_traceback_only_where_it_is_asked_for(run: Run) -> None:
    for words in (["-vv", "table", "show", "x.json"], ["table", "show", "x.json", "-v", "--verbose"]):
        code, _, err = run(*words)
        assert code == cli.FAILED and "Traceback" in err and err.splitlines()[-1].startswith("epd: error: ")
    assert "Traceback" not in run("-v", "table", "show", "x.json")[2]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FloatingPointError("step 3\nis bad"), "step 3 is bad"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (PermissionError(13, "Permission denied", "a/b"), "a/b: Permission denied"),
        (OSError("no number"), "no number"),
    ],
)
def test_what_fails_inside_is_one_line(error: Exception, said: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(options: object) -> int:
        raise error

    monkeypatch.setattr(distill, "distill", failing)
    code, _, err = run("distill")
    assert code == cli.FAILED and err == f"epd: error: {said}\n"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        ProcessError("process 1 of 2 failed: OutOfMemoryError: CUDA out of memory."),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("command", ["distill", "sample", "compare", "evaluate", "doctor"])
def test_out_of_memory_is_one_line_with_its_remedy(
    command: str, error: Exception, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(options: object) -> int:
        raise error

    for module in (distill, sample, compare, evaluate, doctor):
        monkeypatch.setattr(module, module.__name__.split(".")[-1], failing)
    code, out, err = run(command)
    said = " ".join(str(error).split()) or "MemoryError"
    assert (code, out, err) == (cli.FAILED, "", f"epd: error: {said}{cli.WITH_LESS.get(command, '')}\n")
    assert command == "doctor" or "; give --rows 1, " in err and "a smaller --batch" in err
    assert ("--accumulate" in err and "--checkpointing" in err) == (command == "distill")


def test_other_errors_of_torch_are_no_matter_of_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(options: object) -> int:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(distill, "distill", failing)
    with pytest.raises(RuntimeError, match="shapes differ"):
        run("distill")
