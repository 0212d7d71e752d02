"""The benchmark of slices: a row is what it says, a stopped command goes on, and bounds that do not hold are told."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from epd.experiments import bench_slices
from epd.experiments.bench_slices import BOUNDS, JUDGED, PARTS, broken, main

SMALL = argparse.Namespace(width=32, size=8, frames=2, rounds=1)
FINE = {name: most for name, most in BOUNDS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["animatediff", "svd"])
def test_a_row(kind: str) -> None:
    whole, cut = (bench_slices.row(kind, parts, SMALL) for parts in (1, 4))
    assert (whole["memory"], whole["error"], whole["parts"]) == (1.0, 0.0, 1)
    assert 0 < cut["memory"] < 0.8 and 0 < cut["error"] <= 1e-5 and cut["time"] == pytest.approx(cut["times"][0])
    assert cut["bytes"] == pytest.approx(cut["memory"] * whole["bytes"], rel=1e-3)
    if kind == "animatediff":
        assert cut["memory_of_native"] == pytest.approx(cut["bytes"] / cut["native_bytes"], abs=1e-4)
        assert cut["native_bytes"] < whole["native_bytes"] == pytest.approx(whole["bytes"], rel=0.02)


def test_a_stopped_command_goes_on_and_other_settings_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[tuple[str, int]] = []

    def row(kind: str, parts: int, chosen: argparse.Namespace) -> dict[str, Any]:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append((kind, parts))
        return {"network": kind, "parts": parts, "times": [1.0], **FINE}

    monkeypatch.setattr(bench_slices, "row", row)
    words = ["--out", str(tmp_path / "slices.json")]
    with pytest.raises(KeyboardInterrupt):
        main(words)
    made = [("stopped", 0)] * 4  # and never again three
    assert main(words) == 0
    every = [(kind, parts) for kind in ("animatediff", "svd") for parts in PARTS]
    assert made[4:] == every[3:]
    assert "Every bound holds" in capsys.readouterr().out
    assert main([*words, "--print"]) == 0 and len(made) == 4 + len(every) - 3
    assert main([*words, "--width", "32"]) == 0 and made[-len(every) :] == every


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_that_does_not_hold_is_told(name: str) -> None:
    fine = {"network": "svd", "parts": JUDGED, **FINE}
    worse = {**fine, name: 1.01 * BOUNDS[name]}
    assert broken({"a": fine, "b": {**worse, "parts": 2 * JUDGED}}) == []
    (told,) = broken({"a": fine, "b": worse})
    assert told.startswith(f"b: {name} ") and "more than" in told
