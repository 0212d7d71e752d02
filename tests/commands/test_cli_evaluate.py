"""`epd evaluate`: what the command adds to the measurement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command import Run
from helpers.toy_pictures import saved_pictures

from epd import cli

FEATURES = "def mean(x):\n    return x.flatten(1)[:, 70:74] + x.flatten(1)[:, 20:24]\n"


@pytest.fixture
def words(saved: Path, tmp_path: Path) -> list[object]:
    """Everything but --reference."""
    (tmp_path / "features.py").write_text(FEATURES)
    return ["evaluate", "--model", "digits-exact", "--tables", saved, "-n", 8, "--features",
            f"{tmp_path / 'features.py'}:mean", "--out", tmp_path / "out"]  # fmt: skip


def test_evaluate_writes_prints_and_goes_on(run: Run, words: list[object], tmp_path: Path) -> None:
    saved_pictures(tmp_path / "set", 12, (8, 8))
    own = tmp_path / "set.safetensors"
    bright = tmp_path / "bright.py"
    bright.write_text("def bright(images, prompts):\n    return images.mean((1, 2, 3)) + len(prompts[0])\n")
    whole = [*words, "--reward", f"{bright}:bright"]
    code, out, _ = run(*whole, "--reference", tmp_path / "set", "--save-reference", own)
    assert code == cli.OK and out.startswith("| solver |") and "(12 pictures)" in out
    data = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    (row,) = data["rows"]
    assert (row["calls"], row["evaluations"], row["samples"]) == (5, 8, 8) and 0 <= row["precision"] <= 1
    assert 0 < row["rewards"][f"{bright}:bright"]["mean"] < 1  # no class, and so an empty text
    assert (tmp_path / "out" / "evaluation.md").read_text().startswith("# Pictures of `digits-exact`")
    code, out, err = run(*whole, "--reference", own)
    assert code == cli.OK and "1 of 1 files are there already" in err
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"] == data["rows"]
    code, out, err = run(*whole, "--reference", own, "--labels", "3")  # other samples: not those that are there
    assert code == cli.OK and "are there already" not in err


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        ([], cli.USAGE, "--reference is missing"),
        (["--reference", "set", "--tables"], cli.USAGE, "there is nothing to evaluate"),
        (["--reference", "set", "--calls", "0"], cli.USAGE, "sequential calls are at least 1"),
        (["--reference", "set", "--save-reference", "x.npz"], cli.USAGE, "ends in .safetensors"),
        (["--reference", "set", "--reward", "clip-score:x"], cli.USAGE, "digits-exact has none: give --prompts"),
        (["--reference", "empty"], cli.FAILED, "holds 0 pictures"),
        (["--reference", "missing"], cli.FAILED, "missing is no reference"),
        (["--reference", "empty", "--features", "features.py:other"], cli.FAILED, "no function 'other'; it has mean"),
    ],
)
def test_what_is_refused(
    run: Run, words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], code: int,
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    found, out, err = run(*words, *more)
    assert found == code and not out and message in err and err.splitlines()[-1].startswith("epd: error: "), err
