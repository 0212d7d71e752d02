"""`epd sample`, and models and tables by name."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command import Run, table
from helpers.forked import assert_lost, in_processes, kill_at

from epd import cli
from epd.commands import inputs, sample
from epd.commands.models import load_model
from epd.commands.options import Sample, UsageError
from epd.denoisers.digits import digits, digits_exact
from epd.denoisers.mixture import GaussianMixture
from epd.denoisers.noise import unit_noise
from epd.evaluation import shards
from epd.formats import npz
from epd.pipelines.options import ModelOptions
from epd.solvers import rules, schedules
from epd.solvers.solve import solve


def test_a_table_of_another_model_is_a_warning(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("epd").propagate = True
    inputs.fits(table(), digits_exact(), "solver.json")
    assert not caplog.records
    inputs.fits(table(), digits(), "solver.json")
    assert "was learned for digits-exact, not for digits" in caplog.text


def test_tables_are_named_by_file_or_folder(tmp_path: Path) -> None:
    places = [tmp_path / "a" / "solver.json", tmp_path / "b" / "solver.json", tmp_path / "mine.json"]
    for place in places:
        table().save(place)
    found = inputs.named([*map(str, places), "sd15-start-10x2", str(tmp_path / "a")])
    assert list(found)[:4] == ["a", "b", "mine", "sd15-start-10x2"] and len(found) == 5


def test_labels_are_dealt_out_by_seed() -> None:
    x = unit_noise(range(4), (1, 8, 8), torch.float64)
    sigma = torch.tensor(0.7)
    for name in ("digits", "digits-exact"):
        model = load_model(name, ModelOptions(labels=(3, 7), guidance=2.0))
        plain = digits() if name == "digits" else digits_exact()
        ours = model.for_seeds([10, 11, 12, 15])(x, sigma)
        torch.testing.assert_close(ours, plain.bind([3, 7, 3, 7], guidance=2.0)(x, sigma))
        assert model.guidance == 2.0


def drawn(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "samples.npz", allow_pickle=False) as found:
        return dict(found)


def test_a_sample_is_its_seed_whatever_the_batch(run: Run, saved: Path, tmp_path: Path) -> None:
    words = ["sample", "--model", "digits-exact", "--table", saved, "--states", "--dtype", "float64"]
    assert run(*words, "-n", "7", "--batch", "3", "--out", tmp_path / "a")[0] == cli.OK
    assert run(*words, "--seeds", "4,2-3", "--batch", "2", "--out", tmp_path / "b")[0] == cli.OK
    a, b = drawn(tmp_path / "a"), drawn(tmp_path / "b")
    assert a["seeds"].tolist() == list(range(7)) and b["seeds"].tolist() == [4, 2, 3]
    # A matrix product may round by its shape; nothing else of the batch may show.
    np.testing.assert_allclose(a["states"][[4, 2, 3]], b["states"], rtol=0, atol=1e-12)
    assert (a["samples"][[4, 2, 3]] == b["samples"]).all()
    model, t = digits_exact(), table()
    expected = solve(t.rule(), model, unit_noise(range(7), model.shape, torch.float64), t.sigmas.tolist())
    np.testing.assert_allclose(a["states"], expected.numpy(), rtol=0, atol=1e-12)
    assert a["samples"].shape == (7, 8, 8, 1) and a["samples"].dtype == np.uint8
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".hypothesis"]


def test_a_hand_made_rule_makes_the_calls_it_is_asked_for(run: Run, tmp_path: Path) -> None:
    words = ["sample", "--model", "digits-exact", "--rule", "ipndm3", "--calls", "6", "--afs", "--schedule", "logsnr"]
    assert run(*words, "-n", "2", "--dtype", "float64", "--states", "--out", tmp_path)[0] == cli.OK
    model = digits_exact()
    sigmas = schedules.logsnr(7, model.sigma_min, model.sigma_max)
    expected = solve(rules.ipndm(3, afs=True), model, unit_noise(range(2), model.shape, torch.float64), sigmas)
    np.testing.assert_allclose(drawn(tmp_path)["states"], expected.numpy(), rtol=0, atol=1e-12)
    record = json.loads((tmp_path / "samples.json").read_text())
    assert record["solver"]["calls"] == 6 and record["options"]["rule"] == "ipndm3" and "torch" in record["environment"]


def test_labels_and_the_grid(run: Run, tmp_path: Path) -> None:
    words = ["sample", "--model", "digits", "--rule", "euler", "--calls", "2", "-n", "5", "--columns", "3"]
    assert run(*words, "--out", tmp_path)[0] == cli.OK
    assert drawn(tmp_path)["labels"].tolist() == [0, 1, 2, 3, 4]
    assert (tmp_path / "grid.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert run(*words, "--labels", "8", "1", "--grid", "0", "--out", tmp_path / "b")[0] == cli.OK
    assert drawn(tmp_path / "b")["labels"].tolist() == [8, 1, 8, 1, 8] and not (tmp_path / "b" / "grid.png").exists()


def test_a_failure_leaves_the_previous_samples(
    run: Run, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["sample", "--model", "digits-exact", "--table", saved, "-n", "3", "--out", tmp_path / "a"]
    assert run(*words)[0] == cli.OK
    before = (tmp_path / "a" / "samples.npz").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(npz, "_write_rows", full)
        code, _, err = run(*words)
    assert code == cli.FAILED and "No space left" in err
    assert (tmp_path / "a" / "samples.npz").read_bytes() == before
    code, _, err = run(*words)
    assert code == cli.OK and "samples: 1 of 1 files are there already" in err
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["grid.png", "samples.json", "samples.npz"]


def test_two_processes_draw_the_samples_of_one_and_go_on_where_one_was_killed(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sample, shards):
        monkeypatch.setattr(module, "SHARD", 4)

    def draw(folder: str) -> list[int]:
        """Samples of this process, by number."""
        asked, rows = list[int](), sample.Draw.rows
        monkeypatch.setattr(sample.Draw, "rows", lambda own, part: (asked.extend(part), rows(own, part))[1])
        options = Sample(model="digits-exact", table=str(saved), count=22, batch=2, out=tmp_path / folder)
        sample.sample(options)
        return asked

    assert in_processes(lambda: draw("one"), 1) == [[*range(22)]]
    with monkeypatch.context() as deadly:
        kill_at(deadly, sample.Draw, "rows", 3)
        assert_lost(in_processes(lambda: draw("two"), patience=60))
    assert not (tmp_path / "two" / "samples.npz").exists()
    # Of the six files two are there, one of each process.
    assert in_processes(lambda: draw("two")) == [[8, 9, 10, 11, 16, 17, 18, 19], [12, 13, 14, 15, 20, 21]]
    one, two = drawn(tmp_path / "one"), drawn(tmp_path / "two")
    assert one.keys() == two.keys() == {"samples", "seeds"} and all((one[name] == two[name]).all() for name in one)
    assert not (tmp_path / "two" / "parts").exists()


def test_seeds_are_read_as_they_are_written() -> None:
    assert sample.parse_seeds("0-3") == [0, 1, 2, 3] and sample.parse_seeds("5, 1-2,9") == [5, 1, 2, 9]
    for text in ("", "-1", "1-2-3", "1,,2", "0-999999999", "9" * 30, "½"):
        with pytest.raises(UsageError, match="seeds = "):
            sample.parse_seeds(text)


@pytest.mark.parametrize("shape", [(3,), (2, 5), (4, 3, 3), (1, 2, 3, 3)])
def test_samples_that_are_no_pictures_are_saved_as_states_without_a_grid(
    shape: tuple[int, ...], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = GaussianMixture(means, 0.5, sigma_min=0.02, sigma_max=20.0, name="points")
    monkeypatch.setattr(sample, "load_model", lambda name, options: model)
    words = ["sample", "--rule", "euler", "--calls", "4", "-n", "5", "--batch", "2", "--dtype", "float64"]
    (tmp_path / "grid.png").write_bytes(b"of an older run")
    code, _, err = run(*words, "--out", tmp_path)
    assert code == cli.OK and "grid.png" not in err, err
    sigmas = schedules.polynomial(4, 0.02, 20.0)
    expected = solve(rules.euler(), model, unit_noise(range(5), shape, torch.float64), sigmas)
    found = drawn(tmp_path)
    np.testing.assert_allclose(found["states"], expected.numpy(), rtol=0, atol=1e-12)
    assert "samples" not in found and not (tmp_path / "grid.png").exists()


def test_shifted_flow_samples_end_where_the_model_does(run: Run, tmp_path: Path) -> None:
    words = ["sample", "--model", "digits-exact-flow", "--rule", "euler", "--schedule", "flow", "--shift", "3"]
    assert run(*words, "--calls", "3", "-n", "2", "--out", tmp_path)[0] == cli.OK
    sigmas = json.loads((tmp_path / "samples.json").read_text())["solver"]["sigmas"]
    assert sigmas[-1] == digits_exact("flow").sigma_min == 0.002


def test_a_tilde_in_options_and_configs_is_the_home_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    table().save("~/tables/solver.json")
    config = tmp_path / "home" / "c.yaml"
    config.write_text("model: digits-exact\ntable: ~/tables\ncount: 2\nout: ~/from-yaml\n")
    assert run("sample", "--config", "~/c.yaml")[0] == cli.OK
    words = ["sample", "--model", "digits-exact", "--table", "~/tables/solver.json", "-n", "2", "--out", "~/from-words"]
    assert run(*words)[0] == cli.OK
    assert run("table", "show", "~/tables")[0] == cli.OK
    assert run("table", "convert", "~/missing.pkl", "~/out.json")[0] == cli.FAILED
    made = sorted(path.name for path in (tmp_path / "home").iterdir())
    assert made == ["c.yaml", "from-words", "from-yaml", "tables"] and not list((tmp_path / "work").iterdir())
