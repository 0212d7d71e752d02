"""`epd doctor`: verdicts and remedies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from epd.commands import doctor
from epd.commands.options import Doctor


def test_doctor_is_content_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "run_import", lambda statement: "")
    assert doctor.doctor(Doctor(out=tmp_path / "runs" / "deep")) == 0
    out = capsys.readouterr().out
    assert f"torch            {torch.__version__}" in out and out.endswith("ready\n") and "bad " not in out
    assert not (tmp_path / "runs").exists()


def test_doctor_sees_the_torchvision_trap(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fault = "RuntimeError: operator torchvision::nms does not exist"
    monkeypatch.setattr(doctor, "installed", lambda package: "0.1")
    monkeypatch.setattr(doctor, "run_import", lambda statement: fault if "torchvision" in statement else "")
    assert doctor.doctor(Doctor()) == 1
    out = capsys.readouterr().out
    line = r"^bad +torchvision +0.1 does not fit torch: .*nms.*\n +-> .*pip uninstall torchvision"
    assert re.search(line, out, re.MULTILINE)


def test_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "installed", lambda package: None if package in ("tyro", "matplotlib") else "1.0")
    verdicts = {finding.what: finding.verdict for finding in doctor.packages()}
    assert verdicts["tyro"] == "bad" and verdicts["matplotlib"] == "warn" and verdicts["torch"] == "ok"
    assert doctor.writable("out", tmp_path / "missing", "move").verdict == "bad"


def test_an_import_is_tried_in_a_fresh_process() -> None:
    assert doctor.run_import("import json") == ""
    assert "no_such_module" in doctor.run_import("import no_such_module")
