"""The README's before and after: what its script measures is what the pipeline makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from epd.experiments import readme_pictures
from epd.solvers.table import Table


def test_the_shipped_table_comes_nearer_than_stock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, result = tmp_path / "a" / "p.png", tmp_path / "r.json"
    assert readme_pictures.main(["--samples", "20", "--picture", str(picture), "--result", str(result)]) == 0
    told, table = json.loads(result.read_text()), Table.load(readme_pictures.TABLE)
    assert (told["after"]["calls"], told["after"]["nfe"], told["digest"]) == (table.depth, table.nfe, table.digest)
    assert 2 * told["after"]["rmse"] < min(told["before"]["rmse"], told["equal"]["rmse"])
    assert f"{told['before']['rmse']:.4f} before, {told['after']['rmse']:.4f} after" in capsys.readouterr().out
    with Image.open(picture) as image:
        assert image.width > 3 * 5 * 64  # three panels of five pictures


def test_the_shipped_numbers_are_of_the_shipped_table() -> None:
    told = json.loads(readme_pictures.RESULT.read_text())
    assert told["digest"] == Table.load(readme_pictures.TABLE).digest and readme_pictures.PICTURE.exists()
