"""`epd refine`: what the command adds to the trainer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.command import Run
from torch import Tensor

from epd import cli
from epd.commands import refine as command
from epd.commands.options import ModelArguments, Refine
from epd.denoisers.rows import RowLimited
from epd.denoisers.shapes_verifier import verify
from epd.denoisers.shapes_world import prompts
from epd.rl import learn
from epd.rl.config import RefineConfig
from epd.solvers.table import Provenance, Table

QUICK = ["--model", "shapes-exact", "--guidance", "5", "--steps", "2", "--evaluate-every", "1", "--held-out", "64"]
QUICK += ["--groups", "2", "--group-size", "4", "--converged", "0", "--epochs", "1", "--inspect", "0"]
TRAIN, HELD_OUT = prompts("train")[20:24], prompts("held-out")[:3]


def start(folder: Path, path: str = "ve") -> Path:
    """Three Euler steps for the model."""
    sigmas = [80.0, 4.0, 0.4, 0.002] if path == "ve" else [1.0, 0.6, 0.3, 0.002]
    made_for = Provenance("shapes-exact", path)
    table = Table(sigmas, np.zeros((3, 0)), np.zeros((3, 0)), anchor=[1.0] * 3, calls=1, provenance=made_for)
    table.save(folder / "start.json")
    return folder / "start.json"


def prompt_files(folder: Path) -> list[object]:
    for name, texts in (("train", TRAIN), ("held-out", HELD_OUT)):
        (folder / f"{name}.txt").write_text("".join(f"{text}\n" for text in texts))
    return ["--prompts", folder / "train.txt", "--held-out-prompts", folder / "held-out.txt"]


def test_no_option_of_the_trainer_hides_one_of_the_model() -> None:
    own = {"table", "reward", "weights", "watch", "held_out_prompts", "out", "resume", "dry_run", "inspect", "starts"}
    assert not set(RefineConfig.model_fields) & set(ModelArguments.model_fields)
    assert set(Refine.model_fields) == {*RefineConfig.model_fields, *ModelArguments.model_fields, *own}


def test_refine_leaves_a_table_that_sample_takes_and_goes_on(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "r"
    words = [*QUICK, *prompt_files(tmp_path), "--table", start(tmp_path), "--reward", "shapes-graded", "--out", out]
    code, _, err = run("refine", *words, "--watch", "shapes-all")
    assert code == cli.OK and "tensorboard --logdir" in err
    assert Table.load(out / "solver.json").depth == 3
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert set(lines[-1]["test"]["means"]) == {"shapes-graded", "shapes-all"}
    before = (out / "solver.json").read_bytes()
    code, _, err = run("refine", *words, "--watch", "shapes-all")
    assert code == cli.FAILED and "--resume" in err
    assert run("refine", *words, "--watch", "shapes-all", "--resume")[0] == cli.OK
    assert (out / "solver.json").read_bytes() == before
    code, _, err = run("refine", *words, "--watch", "shapes-frac", "--resume")
    assert code == cli.FAILED and "watched" in err
    code, _, _ = run(
        "sample", "--model", "shapes-exact", "--table", out / "solver.json", "-n", "2", "--out", tmp_path / "s"
    )
    assert code == cli.OK


def test_a_table_that_scales_guidance_is_inspected(run: Run, tmp_path: Path) -> None:
    given = start(tmp_path)
    replace(Table.load(given), anchor_guidance=[1.2, 0.9, 1.1]).save(given)
    words = [*QUICK, *prompt_files(tmp_path), "--table", given, "--reward", "shapes-graded", "--out", tmp_path / "r"]
    assert run("refine", *words, "--learn-guidance", "--inspect", "2")[0] == cli.OK
    assert (tmp_path / "r" / "report.json").exists()


def test_other_tables_to_start_at_are_part_of_a_run(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    Table([80.0, 1.0, 0.002], np.zeros((2, 0)), np.zeros((2, 0)), anchor=[1.0] * 2, memory=[[0.0]] * 2, calls=1,
          provenance=Provenance("shapes-exact", "ve")).save(other)  # fmt: skip
    out = tmp_path / "r"
    words = [*QUICK, *prompt_files(tmp_path), "--table", start(tmp_path), "--reward", "shapes-graded", "--out", out]
    code, _, err = run("refine", *words, "--starts", other)
    assert code == cli.FAILED and "start = 'best'" in err and not out.exists()
    words += ["--start", "best"]
    assert run("refine", *words, "--starts", other)[0] == cli.OK
    assert run("refine", *words, "--starts", other, "--resume")[0] == cli.OK
    code, _, err = run("refine", *words, "--resume")
    assert code == cli.FAILED and "starts" in err


def test_rewards_get_the_prompts_that_pictures_were_made_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converged pictures satisfy their prompts, those trained on and those held out."""
    seen: list[tuple[str, float]] = []

    class Watching:
        name = "watching"

        def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
            scores = verify(images, texts).all
            seen.extend(zip(texts, scores.tolist(), strict=True))
            return scores

    monkeypatch.setattr(learn, "load_reward", lambda spec, device, beside: Watching())
    sigmas = np.geomspace(80.0, 0.002, 41)
    fine = Table(sigmas, np.zeros((40, 0)), np.zeros((40, 0)), anchor=[1.0] * 40, calls=1)
    fine.save(tmp_path / "fine.json")
    words = [*QUICK[:4], "--inspect", "0", "--steps", "1", "--groups", "4", "--group-size", "2"]
    words += ["--held-out", "64", "--converged", "0"]
    files = prompt_files(tmp_path)
    words += ["--table", str(tmp_path / "fine.json"), "--reward", "x", "--out", str(tmp_path / "r")]
    assert run("refine", *words, *files)[0] == cli.OK
    tested, trained = seen[:64], seen[64:72]
    assert [text for text, _ in tested[:3]] == list(HELD_OUT) and {text for text, _ in tested} == set(HELD_OUT)
    assert {text for text, _ in trained} <= set(TRAIN)
    for part in (tested, trained):
        assert sum(score for _, score in part) >= 0.9 * len(part)


def test_ten_prompts_or_more_hold_every_fifth_out(run: Run, tmp_path: Path) -> None:
    options = Refine(table="x", reward=("shapes-all",), prompt=tuple(prompts("train")[:12]))
    train, held_out = command._prompts(options, command.model_options(options))
    assert held_out == [prompts("train")[4], prompts("train")[9]] and len(train) == 10
    few = Refine(table="x", reward=("shapes-all",), prompt=tuple(prompts("train")[:9]))
    assert command._prompts(few, command.model_options(few)) == (list(prompts("train")[:9]), [])


def test_a_prompt_that_is_given_twice_is_not_trained_on_where_it_is_held_out() -> None:
    texts = prompts("train")[:12]
    given = (*texts, texts[4], texts[0])
    options = Refine(table="x", reward=("shapes-all",), prompt=given)
    train, held_out = command._prompts(options, command.model_options(options))
    assert held_out == [texts[4], texts[9]]
    assert train == [text for text in given if text not in held_out] and train.count(texts[0]) == 2
    twice = Refine(table="x", reward=("shapes-all",), prompt=(texts[0],) * 20)
    assert command._prompts(twice, command.model_options(twice)) == ([texts[0]] * 20, [])


def test_rewards_are_told_the_classes_of_samples() -> None:
    """Of a pipeline, too, which knows the prompts of its seeds: empty ones."""

    class Classes:
        def prompts_of(self, seeds: Sequence[int]) -> list[str]:
            return [""] * len(seeds)

    for name, labels, texts in (("folder", (3, 7), ["3", "7", "3"]), ("digits", (), ["0", "1", "2"])):
        options = Refine(model=name, table="x", reward=("f.py:f",), labels=labels)
        model = RowLimited(Classes())  # type: ignore[arg-type]
        assert command.texts_of(model, name, command.model_options(options))([0, 1, 2]) == texts


OWN = """
import torch, epd

def make():  # wrong for a noise level of each row
    return epd.own_model(lambda x, sigma: x / (1 + sigma[0]), shape=(1, 4, 4), sigma_min=0.1, sigma_max=2.0, path="ve")

def fine():
    return epd.own_model(
        lambda x, sigma: x / (1 + sigma**2).reshape(-1, 1, 1, 1), shape=(1, 4, 4), sigma_min=0.1, sigma_max=2.0,
        path="ve",
    )

def bright(images, prompts):
    assert images.shape[1:] == (3, 4, 4) and set(prompts) == {""}
    return images.mean((1, 2, 3))
"""


def test_a_model_and_a_reward_of_ones_own(run: Run, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    Table([2.0, 0.5, 0.1], np.zeros((2, 0)), np.zeros((2, 0)), anchor=[1.0] * 2, calls=1).save(tmp_path / "start.json")
    words = ["--table", tmp_path / "start.json", "--reward", f"{tmp_path}/own.py:bright", *QUICK[4:]]
    code, _, err = run("refine", "--model", f"{tmp_path}/own.py:make", *words, "--out", tmp_path / "r")
    assert code == cli.FAILED and "every row has its own noise level" in err and not (tmp_path / "r").exists()
    assert run("refine", "--model", f"{tmp_path}/own.py:fine", *words, "--out", tmp_path / "r")[0] == cli.OK


def test_a_dry_run_says_what_it_costs_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    words = ["--table", start(tmp_path), "--reward", "shapes-graded", "closeness", "--weights", "1", "0.5"]
    code, out, _ = run("refine", *QUICK, *words, "--shared-noise", "--out", tmp_path / "r", "--dry-run")
    assert code == cli.OK and not (tmp_path / "r").exists()
    assert "1 shapes-graded, 0.5 closeness; watched: nothing" in out and f"{2 * 8 * 3:,} training" in out
    assert f"{(2 * 2 + 64) * 130:,} converged end points" in out  # of each prompt's noise, and all that are held out


def test_what_does_not_fit_is_refused(run: Run, tmp_path: Path) -> None:
    table = start(tmp_path)
    for words, message in (
        (["--reward", "shapes-all"], "--table is missing"),
        (["--table", table], "--reward is missing"),
        (["--table", table, "--reward", "shapes-all", "--weights", "1", "2"], "2 weights for 1 rewards"),
        (["--table", table, "--reward", "shapes-all", "shapes-all"], "shapes-all is given twice"),
        (["--table", table, "--reward", "shapes-all", "--watch", "shapes-all"], "shapes-all is given twice"),
        (["--table", table, "--reward", "shapes-al"], "shapes-all"),
        (["--table", table, "--reward", "closenes"], "perhaps you meant 'closeness'; there are closeness, shapes-all"),
        (["--table", start(tmp_path, "flow"), "--reward", "shapes-all"], "flow"),
    ):
        code, _, err = run("refine", *QUICK, *words, "--out", tmp_path / "r")
        assert code in (cli.USAGE, cli.FAILED) and message in err, err
        assert not (tmp_path / "r").exists()
    words = ["--table", start(tmp_path), "--reward", "shapes-all", "--policy", "published", "--out", tmp_path / "r"]
    code, _, err = run("refine", *QUICK, *words)
    assert code == cli.FAILED and "take 'ours'" in err and not (tmp_path / "r").exists()
    both = [*prompt_files(tmp_path)[:2], "--held-out-prompts", tmp_path / "train.txt"]
    code, _, err = run("refine", *QUICK, *both, "--table", start(tmp_path), "--reward", "shapes-all")
    assert code == cli.USAGE and "is trained on and held out, too" in err
