"""The command: exit codes, one line per expected error, what it loads."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command import Run

from epd import __version__, cli
from epd.commands import compare, distill, doctor, evaluate, experiments
from epd.commands.logs import set_up_logging
from epd.experiments.stepmix.__main__ import main as stepmix


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
