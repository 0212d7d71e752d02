"""Progress bars: where there is somebody to see them, and only there; everything long has one."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.command import Run
from helpers.toy_models import toy_config, toy_mixture

from epd.commands.logs import set_up_logging
from epd.distill.run import run_distill
from epd.evaluation.compare import compare
from epd.runs.progress import bar, progress, silent

# KDPM2 wraps a tensor in numpy in a way that numpy 2 calls old; the warning is raised in numpy's own module.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


Watch = Callable[[], Terminal]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Watch:
    """Somebody who watches; called by the test itself, as pytest puts a stderr of its own before each."""

    def begin() -> Terminal:
        monkeypatch.setenv("EPD_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(sys, "stderr", Terminal())
        set_up_logging(0)
        return sys.stderr  # type: ignore[return-value]

    return begin


def test_bars_are_quiet_in_a_pipe_with_q_and_in_other_processes(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = watch()
    assert not silent()
    set_up_logging(-1)
    assert silent()
    set_up_logging(0)
    monkeypatch.setenv("RANK", "1")
    assert silent()
    monkeypatch.setenv("RANK", "0")
    assert not silent()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert silent() and list(progress([1, 2], "counting", "number")) == [1, 2]
    assert terminal.getvalue() == ""


def test_a_bar_begins_where_the_run_does(watch: Watch) -> None:
    terminal = watch()
    with bar(10, "training", "update", done=4) as shown:
        shown.update(1)
        shown.refresh()
    assert "4/10" in terminal.getvalue() and "5/10" in terminal.getvalue()


def test_messages_stand_above_a_bar(watch: Watch) -> None:
    terminal = watch()
    with bar(10, "training", "update"):
        logging.getLogger("epd").info("a message")
    at = terminal.getvalue().index("a message\n")
    assert terminal.getvalue()[:at].rstrip(" ").endswith("\r")  # the bar was wiped off before


def test_teacher_training_and_comparison_show_how_far_they_are(watch: Watch, tmp_path: Path) -> None:
    terminal = watch()
    run_distill(toy_mixture(), toy_config(family="epd", iterations=2), tmp_path / "run")
    for what in ("teacher (256 a block): 100%", "training:"):
        assert what in terminal.getvalue()
    compare(toy_mixture(), {}, (2,), 8, 4, tuning=4, tolerance=1e-2, solvers=["Euler"])
    for what in ("converged end points: 100%", "comparing: 100%"):
        assert what in terminal.getvalue()


def test_samples_show_how_far_they_are(watch: Watch, run: Run, saved: Path, tmp_path: Path) -> None:
    terminal = watch()
    run("sample", "--model", "digits-exact", "--table", saved, "-n", 2, "--out", tmp_path / "out")
    assert "samples: 100%" in terminal.getvalue()
