"""`evaluate`: against torchmetrics on the same pictures; for one process and two; killed and resumed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.forked import assert_lost, in_processes, kill_at
from helpers.tiny_rewards import saved_clip
from helpers.toy_pictures import TinyFeatures, picture_mixture, rough_table, saved_pictures
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

import epd
from epd.evaluation.drawing import Drawing
from epd.evaluation.evaluate import write_evaluation
from epd.evaluation.evaluation import Evaluation, Score
from epd.evaluation.extractors import load_features, pictures_of
from epd.evaluation.feature_metrics import kernel_distance, precision_recall
from epd.evaluation.reference import ReferenceError
from epd.evaluation.stats_files import read_own
from epd.rl.reward import measured
from epd.rl.rewards import load_reward
from epd.runs.processes import Workers

# KDPM2 wraps a tensor in numpy in a way that numpy 2 calls old; the warning is raised in numpy's own module.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files of 8 samples."""
    for module in ("shards", "drawing", "evaluate"):
        monkeypatch.setattr(f"epd.evaluation.{module}.SHARD", 8)
    yield


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    saved_pictures(tmp_path / "reference")
    return tmp_path / "reference"


Features = Callable[[Tensor], Tensor]


def measure(
    reference: Path,
    keep: Path,
    features: Features | None = None,
    samples: int = 44,
    model: epd.GaussianMixture | None = None,
    **more: Any,  # noqa: ANN401 - what `evaluate` takes by name
) -> Evaluation:
    tables, seen_by = {"ours": rough_table()}, features or TinyFeatures()
    return epd.evaluate(model or picture_mixture(), tables, seen_by, reference, keep, samples, **more)


def drawn(samples: int, seed: int = 0) -> Tensor:
    """The pictures of these seeds, one by one."""
    model, table = picture_mixture(), rough_table()
    noise = epd.unit_noise(range(seed, seed + samples), model.shape)
    ends = [epd.solve(table.rule(), model, row[None], table.sigmas.tolist()) for row in noise]
    return pictures_of(model.decode(torch.cat(ends)))


def test_fid_is_that_of_torchmetrics(reference: Path, tmp_path: Path) -> None:
    evaluation = measure(reference, tmp_path / "keep", batch=3)
    (row,) = evaluation.rows
    real, generated = saved_pictures(tmp_path / "again"), drawn(44)
    theirs = FrechetInceptionDistance(feature=TinyFeatures())
    theirs.update(real, real=True)
    theirs.update(generated, real=False)
    with torch.no_grad():
        assert row.fid == pytest.approx(float(theirs.compute()), rel=1e-6) and row.fid > 0.01
    a, b = (load_features(TinyFeatures())(pictures) for pictures in (real, generated))
    assert (row.kid, row.kid_std) == pytest.approx(kernel_distance(a, b, 100, 15), rel=1e-6)
    assert (row.precision, row.recall) == precision_recall(a, b)
    assert (row.solver, row.learned, row.calls, row.evaluations, row.samples) == ("ours", True, 4, 6, 44)
    assert (evaluation.reference_count, evaluation.width, evaluation.features) == (30, 5, "TinyFeatures")


def test_a_sample_is_its_seed_whatever_the_batch(reference: Path, tmp_path: Path) -> None:
    all_of = [measure(reference, tmp_path / str(batch), batch=batch, seed=5).rows[0] for batch in (1, 3, 8, 100)]
    for row in all_of[1:]:
        assert row.fid == pytest.approx(all_of[0].fid, rel=1e-5) and row.recall == all_of[0].recall
    generated = load_features(TinyFeatures())(drawn(44, seed=5))
    real = load_features(TinyFeatures())(saved_pictures(tmp_path / "again"))
    assert all_of[0].kid == pytest.approx(kernel_distance(real, generated, 100, 15)[0], rel=1e-5)


def test_two_processes_measure_what_one_does_to_the_bit(reference: Path, tmp_path: Path) -> None:
    def work(keep: Path) -> Callable[[], object]:
        def measured() -> object:
            workers = Workers.of_accelerate()
            evaluation = measure(reference, keep, workers=workers, solvers=["Euler"], calls=(3,), samples=20)
            return json.loads(evaluation.to_json())["rows"]

        return measured

    alone = in_processes(work(tmp_path / "one"), 1)[0]
    assert in_processes(work(tmp_path / "two"), 2) == [alone, alone]
    assert isinstance(alone, list) and [row["solver"] for row in alone][:2] == ["ours", "Euler"]
    files = [sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*.safetensors")) for n in ("one", "two")]
    assert files[0] == files[1]
    for path in files[0]:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path


def test_one_of_two_processes_is_killed_and_both_go_on(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the second file of samples; the reference has four files, two of each process."""

    def work() -> object:
        rows = measure(reference, tmp_path / "keep", workers=Workers.of_accelerate(), batch=4).rows
        return json.loads(json.dumps([dataclasses.asdict(row) for row in rows]))

    with monkeypatch.context() as deadly:
        kill_at(deadly, Drawing, "rows", 4)
        assert_lost(in_processes(work, patience=60))
    assert len([*(tmp_path / "keep").rglob("0*.safetensors")]) == 4 + 2
    alone = measure(reference, tmp_path / "alone", batch=4).rows
    expected = json.loads(json.dumps([dataclasses.asdict(row) for row in alone]))
    assert in_processes(work) == [expected, expected]


def test_what_fails_in_one_process_fails_in_all(reference: Path, tmp_path: Path) -> None:
    network = TinyFeatures()

    def features(pictures: Tensor) -> Tensor:
        out = network(pictures)
        return out * float("nan") if os.environ["RANK"] == "1" and len(pictures) > 1 else out

    def work() -> object:
        return str(measure(reference, tmp_path / "keep", features, workers=Workers.of_accelerate()))

    first, second = in_processes(work)
    assert second == ["FeatureError", (
        "the features features of picture 0 of 8 are not finite: mend the extractor, or let it compute in float32"
    )]  # fmt: skip
    assert isinstance(first, list) and first[0] == "ProcessError" and "process 1 of 2 failed: FeatureError" in first[1]


def test_killed_and_resumed_it_measures_the_same_bits(reference: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of the reference's and of the samples' files, beside half-written ones."""
    whole = measure(reference, tmp_path / "whole")
    network, calls = TinyFeatures(), 0

    def features(pictures: Tensor) -> Tensor:
        nonlocal calls
        calls += len(pictures) > 1  # not the fixed picture
        if calls == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return network(pictures)

    features.__name__ = "TinyFeatures"
    for stop in (3, 4, 3):  # noqa: B007 - read by the function
        pid = os.fork()
        if pid == 0:
            try:
                measure(reference, tmp_path / "killed", features)
            finally:
                os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    # Two and three files, of which the reference has 4, and two of the samples' 6.
    folders = sorted((tmp_path / "killed").iterdir())
    assert sorted(len([*folder.glob("0*.safetensors")]) for folder in folders) == [3, 4]
    for folder in folders:
        (folder / ".000000000-8.safetensors.abcdefgh").write_bytes(b"half")
    damaged = next(folder for folder in folders if "reference" not in folder.name) / "000000000-8.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    calls, stop = 0, -1
    resumed = measure(reference, tmp_path / "killed", features)
    assert resumed.rows == whole.rows and calls == 6 - 3 + 1
    assert not [*(tmp_path / "killed").rglob(".0*")]


def test_more_samples_and_solvers_go_on_from_those_that_are_there(reference: Path, tmp_path: Path) -> None:
    network, seen = TinyFeatures(), list[int]()

    def features(pictures: Tensor) -> Tensor:
        seen.append(len(pictures))
        return network(pictures)

    measure(reference, tmp_path, features, 20)
    seen.clear()
    more = measure(reference, tmp_path, features, 28)
    assert sum(size for size in seen if size > 1) == 8 + 4  # the file of the last 4 of 20 is too short
    assert more.rows == measure(reference, tmp_path / "fresh", features, 28).rows
    seen.clear()
    rows = measure(reference, tmp_path, features, 28, solvers=["Heun"], calls=(2, 3)).rows
    # Three calls are one step of Heun, as two are; with AFS two calls are none, or so few that it was left out.
    assert [(row.solver, row.calls) for row in rows if not row.solver.startswith("diff")] == [
        ("ours", 4), ("Heun", 2), ("Heun AFS", 1), ("Heun AFS", 3),
    ]  # fmt: skip
    assert sum(size for size in seen if size > 1) == 28 * (len(rows) - 1)


def test_another_network_under_the_same_name_is_measured_anew(
    reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = measure(reference, tmp_path / "keep")
    after = measure(reference, tmp_path / "keep", model=picture_mixture(0.7))
    assert "is of another network under the same name" in caplog.text
    assert before.rows != after.rows == measure(reference, tmp_path / "fresh", model=picture_mixture(0.7)).rows


def test_rewards_are_means_over_all_samples(reference: Path, tmp_path: Path) -> None:
    saved_clip(tmp_path / "clip")
    spec, texts = f"clip-score:{tmp_path / 'clip'}", ["a red fox", "an owl", "fox"]

    def prompts(seeds: Sequence[int]) -> list[str]:
        return [texts[seed % 3] for seed in seeds]

    def red(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images[:, 0].mean((1, 2))

    rewards = {"clip": spec, "red": red}
    (row,) = measure(reference, tmp_path / "keep", rewards=rewards, texts=prompts).rows
    pictures = drawn(44)
    expected = measured(load_reward(spec), pictures, prompts(range(44)))
    assert row.rewards["clip"].mean == pytest.approx(float(expected.mean()), rel=1e-5)
    assert row.rewards["clip"].error == pytest.approx(float(expected.std()) / 44**0.5, rel=1e-4)
    assert row.rewards["red"].mean == pytest.approx(float(pictures[:, 0].mean()), rel=1e-5)


def test_edms_statistics_serve_fid_alone_and_our_own_all(reference: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    whole = measure(reference, tmp_path / "keep", save_reference=own)
    stats = read_own(own)
    np.savez(tmp_path / "edm.npz", mu=stats.moments.mean.numpy(), sigma=stats.moments.covariance.numpy())
    alone = measure(tmp_path / "edm.npz", tmp_path / "keep").rows[0]
    assert alone.fid == whole.rows[0].fid and alone.kid is alone.kid_std is alone.precision is alone.recall is None
    assert measure(own, tmp_path / "keep").rows == whole.rows


def test_json_and_markdown(reference: Path, tmp_path: Path) -> None:
    evaluation = measure(reference, tmp_path / "keep", rewards={"bright": lambda x, prompts: x.mean((1, 2, 3))})
    paths = write_evaluation(evaluation, tmp_path / "out")
    assert [path.name for path in paths] == ["evaluation.json", "evaluation.md"]
    data, row = json.loads(paths[0].read_text()), evaluation.rows[0]
    assert data["rows"][0]["fid"] == row.fid and data["environment"]["torch"] == torch.__version__
    assert row.rewards["bright"] == Score(**data["rows"][0]["rewards"]["bright"])
    head, rule, line = paths[1].read_text().splitlines()[2:5]
    assert head.count("|") == rule.count("|") == line.count("|") == 11 and head.endswith("| recall | bright |")
    assert line.startswith(f"| **ours** | learned | 4 | 6 | 44 | {row.fid:.3f} |")
    about = paths[1].read_text().splitlines()[-1]
    assert about.startswith("Model `pictures`, guidance 1, seeds 0 to 43; reference `")
    assert about.endswith("(30 pictures); features `TinyFeatures` (5).")


def test_a_solver_that_overflows_is_left_out(
    reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wild = epd.Table([20.0, 2.0, 0.02], [[0.3, 0.7]] * 2, [[0.5, 0.5]] * 2, slope_scale=[[1e30, 1e30]] * 2)
    tables = {"ours": rough_table(), "wild": wild}
    found = epd.evaluate(picture_mixture(), tables, TinyFeatures(), reference, tmp_path / "keep", 10)
    assert [row.solver for row in found.rows] == ["ours"] and "wild at 4 calls is left out" in caplog.text
    with pytest.raises(FloatingPointError, match="no solver stays within the finite numbers"):
        epd.evaluate(picture_mixture(), {"wild": wild}, TinyFeatures(), reference, tmp_path / "keep", 10)


def test_few_samples_are_told_of_and_too_few_refused(
    reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measure(reference, tmp_path, samples=5)
    assert "FID of 5 samples in 5 features is far above that of many" in caplog.text
    refused: list[tuple[dict[str, Any], str]] = [
        ({"samples": 3}, "samples = 3"),
        ({"manifold": 3}, "manifold = 3"),
        ({"batch": 0}, "batch = 0"),
        ({"seed": 2**30}, "tables are learned on seeds from"),
        ({"solvers": ["Eulr"]}, "no solver is named 'Eulr'.*all are 'hand-made'$"),
        ({"solvers": ["Euler"], "calls": (0,)}, "counts of at least 1"),
    ]
    for more, message in refused:
        with pytest.raises(ValueError, match=message):
            measure(reference, tmp_path, **more)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        epd.evaluate(picture_mixture(), {}, TinyFeatures(), reference, tmp_path, 10)
    with pytest.raises(ReferenceError, match="is 6 x 6, the model's pictures are 8 x 8"):
        epd.evaluate(epd.GaussianMixture(torch.zeros(1, 1, 8, 8), 1.0), {"ours": rough_table()}, TinyFeatures(),
                     reference, tmp_path, 10)  # fmt: skip
