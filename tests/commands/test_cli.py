"""The command: exit codes, one line per expected error, what it loads."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.command import Run

from epd import __version__, cli
from epd.commands import compare, distill, doctor, evaluate, experiments, sample
from epd.commands.logs import set_up_logging
from epd.experiments.stepmix.__main__ import main as stepmix
from epd.runs.processes import ProcessError


def test_help_lists_the_commands_and_the_exit_codes(run: Run) -> None:
    code, out, err = run("--help")
    assert code == cli.OK and not err
    assert all(name in out for name in cli.COMMANDS) and "exit codes:" in out
    code, out, err = run()
    assert code == cli.USAGE and not out and "usage: epd" in err


def test_experiments_are_those_of_the_package(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("experiments", "--help")
    assert code == cli.OK and not err and all(name in out for name in experiments.EXPERIMENTS)
    assert all(importlib.util.find_spec(f"epd.experiments.{name}") for name in experiments.EXPERIMENTS)
    code, out, _ = run("experiments", "stepmix", "--print")
    assert stepmix(["--print"]) == 0 == code and out == capsys.readouterr().out and out.startswith("stepmix-episodes")
    code, _, err = run("experiments", "stepmix", "--only", "nothing")
    assert code == cli.FAILED and err.startswith("epd: error: ") and len(err.splitlines()) == 1
    assert run("experiments", "stepmix", "--onyl", "x")[0] == cli.USAGE
    assert run("experiments", "bench_learned", "--print")[0] == cli.OK  # a module, where that is a package


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name: str, run: Run) -> None:
    code, out, _ = run(*name.split(), "--help")
    assert code == cli.OK and f"usage: epd {name}" in out
    text = re.sub(r"[│\s]+", " ", out)
    for field, info in cli._options(name).model_fields.items():
        assert info.description and info.description in text, field


def test_version_and_groups(run: Run) -> None:
    assert run("--version") == (cli.OK, f"epd {__version__}\n", "")
    code, out, _ = run("table", "--help")
    assert code == cli.OK and out.count("epd table") == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["destill"], "no command 'destill': perhaps you meant 'distill'"),
        (["table"], "no command 'table': "),
        (["experiment"], "no command 'experiment': perhaps you meant 'experiments'"),
        (["experiments"], "no experiment '': there are study, stepmix, "),
        (["experiments", "stepmx"], "no experiment 'stepmx': perhaps you meant 'stepmix'"),
        (["table", "shw", "x"], "no command 'table shw': perhaps you meant 'table show'"),
        (["distill", "--iteratons", "3"], "--iterations"),
        (["distill", "--calls", "300"], "must be a number from 1 to 200"),
        (["distill", "--family", "epdd"], "epdd"),
        (["table", "show"], "required"),
        (["sample"], "give exactly one of --table FILE and --rule NAME"),
        (["sample", "--rule", "euler", "--table", "x.json"], "give exactly one of"),
        (["sample", "--rule", "heun", "--calls", "5"], "heun makes 2 a step, so give an even number"),
        (["sample", "--rule", "heun", "--calls", "4", "--afs"], "give an odd number"),
        (["sample", "--rule", "euler", "--seeds", "5-1"], "'5-1' must rise"),
        (["sample", "--rule", "euler", "--seeds", "1,x"], "'x' is no seed nor range"),
        (["sample", "--rule", "euler", "--seeds", "0-3", "-n", "3"], "count = 3, but seeds = '0-3' are 4"),
        (["sample", "--rule", "euler", "--schedule", "flow"], "needs a flow path, digits is ve"),
        (["sample", "-n", "0", "--rule", "euler"], "greater than or equal to 1"),
        (["compare", "--calls", "0"], "sequential calls are at least 1"),
        (["table", "convert", "a.pkl", "b.yaml"], "tables are written as .json"),
    ],
)
def test_usage_errors(
    words: list[str], message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert code == cli.USAGE and not out and message in err, err
    assert "Traceback" not in err and not list(tmp_path.iterdir())


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


def test_verbosity_stands_anywhere() -> None:
    assert cli.split_verbosity(["-v", "table", "show", "a"]) == (["table", "show", "a"], 1)
    assert cli.split_verbosity(["table", "-q", "show", "a", "--quiet"]) == (["table", "show", "a"], -2)
    assert cli.split_verbosity(["table", "-vvv", "--", "-q"]) == (["table", "--", "-q"], 3)


def test_logging_is_quieter_on_other_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("epd")
    heard = {}
    for rank in ("0", "1"):
        for verbosity in (-1, 0, 1):
            monkeypatch.setenv("RANK", rank)
            set_up_logging(verbosity)
            for level in ("debug", "info", "warning", "error"):
                getattr(log, level)("said")
            heard[rank, verbosity] = capsys.readouterr().err.splitlines()
    assert heard["0", -1] == ["epd: warning: said", "epd: error: said"]
    assert heard["0", 0] == ["said", *heard["0", -1]] and heard["0", 1] == ["epd: debug: said", *heard["0", 0]]
    assert heard["1", -1] == heard["1", 0] == heard["1", 1] == ["epd: error: said"]


def test_ctrl_c_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(distill, "distill", interrupted)
    monkeypatch.setattr(doctor, "doctor", interrupted)
    monkeypatch.setattr(compare, "compare", interrupted)
    monkeypatch.setattr(evaluate, "evaluate", interrupted)
    for command in ("compare", "evaluate"):
        assert run(command) == (cli.FAILED, "", "epd: interrupted; the same command again continues it\n")
    assert run("distill") == (cli.FAILED, "", "epd: interrupted; add --resume to continue the run\n")
    assert run("doctor") == (cli.FAILED, "", "epd: interrupted\n")


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


def process(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "epd.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from epd import cli; cli.main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1]
    assert not [name for name in ("'torch'", "'numpy'", "'pydantic'", "'tyro'", "'diffusers'") if name in loaded]


def test_help_of_a_command_loads_no_torch() -> None:
    code = "import sys; from epd import cli; cli.main(['distill', '--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'torch'" not in done.stdout.splitlines()[-1] and "'numpy'" not in done.stdout.splitlines()[-1]


def test_the_exit_code_is_that_of_the_process() -> None:
    assert process("--version").returncode == cli.OK
    assert process("table", "show", "missing.json").returncode == cli.FAILED
    assert process("tabel").returncode == cli.USAGE


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    command = f"'{sys.executable}' -m epd.cli table show sd15-rdpo-10x2 | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=300)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_scripts(shell: str, tmp_path: Path) -> None:
    done = process("--tyro-print-completion", shell)
    assert done.returncode == cli.OK and "family" in done.stdout and "convert" in done.stdout
    if shutil.which(shell):
        script = tmp_path / "completion"
        script.write_text(done.stdout)
        assert subprocess.run([shell, "-n", str(script)], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_help_texts_are_set_as_prose(name: str, run: Run) -> None:
    _, out, _ = run(*name.split(), "--help")
    lines = out.replace("│", " ").splitlines()  # a frame, where the terminal can draw one
    column = " " * 6  # texts stand beside their options, or below them where these are long
    texts = [line if line.startswith(column) and line.strip() else "" for line in lines]
    pairs = [(a, b) for a, b in itertools.pairwise(texts) if a and b]
    for line, following in pairs:
        room = len(line) - 2 - len(line.rstrip())
        assert room <= len(following.split()[0]), f"{line}\n{following}"
    assert pairs or name not in ("distill", "sample", "compare")
