"""Solvers by the quality of their pictures: `evaluate` measures, `write_evaluation` writes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..denoisers.checks import check_members, check_model
from ..denoisers.noise import unit_noise
from ..denoisers.protocol import Model
from ..denoisers.rows import limit_rows, samples_together
from ..distill.teacher import POOL_SEEDS
from ..formats.files import write_atomically
from ..rl.learn import RewardLike, reward_of
from ..rl.task import Prompted, no_text
from ..runs.environment import environment
from ..runs.processes import Workers
from ..solvers.table import Table
from .drawing import Drawing
from .evaluation import Evaluation, Row, Score
from .extractors import load_features, pictures_of
from .feature_metrics import NEIGHBOURS, kernel_distance, precision_recall, some_rows
from .metrics import frechet, moments
from .reference import load_reference
from .rivals import Rival, rivals_of, tables_as_rivals
from .shards import SHARD, Shards
from .stats_files import Statistics, write_statistics

log = logging.getLogger("epd")
SUBSETS, SUBSET = 100, 1000
NUMBERS = 7  # calls, evaluations, FID, KID and its deviation, precision, recall: what the first process tells others


@torch.no_grad()
def evaluate(
    model: Model,
    tables: Mapping[str, Table],
    features: str | Callable[[Tensor], Tensor],
    reference: Path | str,
    keep: Path | str,
    samples: int = 50_000,
    batch: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    solvers: Sequence[str] = (),
    calls: Sequence[int] = (3, 5, 7, 9),
    rewards: Mapping[str, RewardLike] | None = None,
    texts: Callable[[Sequence[int]], list[str]] | None = None,
    manifold: int = 10_000,
    save_reference: Path | str | None = None,
    conditions: Mapping[str, object] | None = None,
    workers: Workers | None = None,
) -> Evaluation:
    """Measures what solvers' pictures are worth: FID, KID, precision and recall against a reference, mean rewards.

    A sample is its seed; features are kept in files of 128 samples as they are computed, so that a later call goes on,
    with more samples or solvers, too. The result is the same for any number of processes, to the bit for one `batch`.
    Pictures are rounded to 8 bits, as published statistics are of files. References: arXiv 1706.08500 (FID),
    1801.01401 (KID: 100 subsets of 1000, or of half of the smaller set), 1904.06991 (precision and recall, k = 3).

    Args:
        model: one that decodes to pictures, (B, 3, H, W) or (B, 1, H, W).
        tables: learned solvers by name.
        features: as of `load_features`.
        reference: as of `load_reference`; a `.npz` has no features, and so no KID, precision and recall.
        keep: folder of the kept features, of samples and of the reference; one that all processes see.
        samples: seeds `seed`, `seed` + 1, ...
        batch: samples that are solved together, at most 128; None: 128, fewer of large samples.
        dtype: of the states.
        solvers: names or groups of hand-made solvers to measure, too, each at every count of `calls` and on the
            schedule with the smallest RMSE to the converged end points of the first 256 samples, as in `compare`.
        rewards: by name, as of `refine`.
        texts: seeds -> prompts, for rewards; None: the model's own, where it has them.
        manifold: features of either side, at most, that precision and recall are measured on (n^2 distances), and of
            the reference, KID.
        save_reference: file to write the reference's statistics to.
        conditions: what else the model was asked for, ready for JSON; features under others are not taken.
        workers: the processes of this run.

    Raises:
        FeatureError: for an extractor that is not there, fails, or returns anything but finite rows.
        ReferenceError: for a reference that cannot be read or does not fit.
        ValueError: for too few samples, or solvers that do not exist.
        FloatingPointError: where no solver stays within the finite numbers.
    """
    workers, keep = workers or Workers(), Path(keep)
    _check_counts(samples, batch, manifold, seed)
    check_members(model)
    model = limit_rows(model)
    own = model.model.prompts_of if isinstance(model.model, Prompted) else no_text

    def prepared() -> Drawing:
        check_model(model, dtype, decode=True)
        extractor = load_features(features, model.device)
        named = {name: reward_of(reward, model.device, name) for name, reward in (rewards or {}).items()}
        picture = pictures_of(model.decode(unit_noise([seed], model.shape, dtype, model.device))).shape[1:]
        return Drawing(model, extractor, named, texts or own, seed, dtype, tuple(picture), conditions or {})

    drawing = workers.together(prepared)
    against = load_reference(Path(reference), drawing.extractor, drawing.picture, keep, manifold, workers)
    if save_reference is not None:
        path = Path(save_reference)
        workers.together(lambda: None if workers.rank else write_statistics(path, against))
    width = len(against.moments.mean)
    if samples <= width:
        text = "FID of %d samples in %d features is far above that of many: compare equal counts only"
        log.warning(text, samples, width)
    handmade = rivals_of(model, solvers, calls, keep, workers, seed, dtype, conditions)
    rivals = [*tables_as_rivals(tables, model.device), *handmade]
    size = batch or samples_together(model.shape, SHARD)
    rows = _rows(drawing, rivals, against, samples, size, manifold, keep, workers)
    return Evaluation(
        model.name, model.guidance, drawing.extractor.name, width, str(reference), against.count, samples, seed,
        str(dtype).removeprefix("torch."), tuple(rows), environment(),
    )  # fmt: skip


def _rows(
    drawing: Drawing,
    rivals: Sequence[Rival],
    against: Statistics,
    samples: int,
    batch: int,
    manifold: int,
    keep: Path,
    workers: Workers,
) -> list[Row]:
    """A row for each solver that stays within the finite numbers."""
    if not rivals:
        raise ValueError("there is nothing to evaluate: give tables, or names of hand-made solvers")

    def asked() -> tuple[dict[str, Tensor], list[dict[str, object]]]:
        return drawing.probe(), [drawing.identity(rival) for rival in rivals]

    rows, (probe, identities) = list[Row](), workers.together(asked)
    for rival, identity in zip(rivals, identities, strict=True):
        shards = Shards.of(keep, identity, samples)
        begin = partial(shards.begin, identity, probe)
        workers.together(lambda begin=begin: None if workers.rank else begin())
        try:
            shards.fill(partial(drawing.rows, rival), workers, f"{rival.name}, {rival.calls} calls", batch)
        except FloatingPointError as error:
            log.warning("%s at %d calls is left out: %s", rival.name, rival.calls, error)
            continue
        rows.append(_row(rival, shards, against, list(drawing.rewards), manifold, workers))
        log.info("%s, %d calls: FID %.3f", rival.name, rows[-1].calls, rows[-1].fid)
    if not rows:
        raise FloatingPointError("no solver stays within the finite numbers: try more calls, or other solvers")
    return rows


def _check_counts(samples: int, batch: int | None, manifold: int, seed: int) -> None:
    if min(samples, manifold) <= NEIGHBOURS or (batch is not None and batch < 1) or seed < 0:
        raise ValueError(
            f"samples = {samples}, manifold = {manifold}, batch = {batch}, seed = {seed}: at least "
            f"{NEIGHBOURS + 1}, {NEIGHBOURS + 1}, 1 and 0"
        )
    if seed + samples > POOL_SEEDS:
        raise ValueError(f"seed = {seed} with samples = {samples}: tables are learned on seeds from {POOL_SEEDS} on")


def _row(
    rival: Rival, shards: Shards, against: Statistics, rewards: list[str], manifold: int, workers: Workers
) -> Row:
    """A solver's row, measured by the first process, the same in all."""

    def numbers(_: int) -> Tensor:
        kept = shards.read()
        out = [*kept["costs"][0].tolist(), *_distances(kept["features"], against, manifold)]
        scores = kept["scores"].double().T  # (R, N)
        means = [float(score.mean()) for score in scores]
        errors = [float(score.std()) / math.sqrt(len(score)) for score in scores]
        return torch.tensor([*out, *means, *errors], dtype=torch.float64)

    told = workers.mean(1, NUMBERS + 2 * len(rewards), numbers).tolist()
    calls, evaluations, fid, *rest = told[:NUMBERS]
    kid, kid_std, precision, recall = (None if math.isnan(number) else number for number in rest)
    means, errors = told[NUMBERS : NUMBERS + len(rewards)], told[NUMBERS + len(rewards) :]
    scores = {name: Score(mean, error) for name, mean, error in zip(rewards, means, errors, strict=True)}
    return Row(
        rival.name, rival.learned, rival.schedule, int(calls), int(evaluations), shards.count, fid, kid, kid_std,
        precision, recall, scores,
    )  # fmt: skip


def _distances(features: Tensor, against: Statistics, manifold: int) -> list[float]:
    """FID, KID and its deviation, precision, recall; NaN for what needs features that the reference does not have."""
    fid = frechet(moments(features), against.moments)
    if against.features is None:
        return [fid, *[math.nan] * 4]
    real = some_rows(against.features, manifold)
    size = min(SUBSET, len(real) // 2, len(features) // 2)  # subsets of all there is would have no spread
    shares = precision_recall(real, some_rows(features, manifold))
    return [fid, *kernel_distance(real, features, SUBSETS, size), *shares]


def write_evaluation(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Writes evaluation.json and evaluation.md; the paths written."""
    title = f"# Pictures of `{evaluation.model}`\n\n"
    texts = {"evaluation.json": evaluation.to_json(), "evaluation.md": title + evaluation.markdown()}
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in texts]
