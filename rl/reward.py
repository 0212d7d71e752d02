"""What a reward is, its scores checked, and the weighted sum of several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..denoisers.checks import in_words

OUTSIDE = 1e-3  # by as much rounding may leave [0, 1]; such pixels are clamped
CONSTANT = 1e-8  # of the mean: a spread up to there is rounding


class RewardError(ValueError):
    """A reward that cannot be loaded or failed: which one, with what, and the remedy."""


class Reward(Protocol):
    """What scores pictures: larger is better. Without gradients; in any unit, see `Normalisation`."""

    @property
    def name(self) -> str:
        """What records and errors call it."""
        ...

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of images (B, 3, H, W) in [0, 1] for their B prompts."""
        ...


def measured(reward: Reward, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """The scores (B,) of a reward, float64 on the CPU, proven to be B finite numbers.

    Args:
        reward: called once, without gradients.
        images: (B, 3, H, W), or grey ones (B, 1, H, W), in [0, 1].
        prompts: B of them.

    Raises:
        RewardError: for pictures that are none, whatever the reward raises, scores of another shape, or one that is not
            finite. KeyboardInterrupt passes.
    """
    pictures = _pictures(reward.name, images, prompts)
    try:
        with torch.no_grad():
            scores = reward(pictures, prompts)
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(
            f"the reward {reward.name} failed on {len(pictures)} pictures ({in_words(error)}): mend it; -vv shows the "
            "traceback"
        ) from error
    return _checked(reward.name, scores, len(pictures))


def _pictures(name: str, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Pictures (B, 3, H, W), clamped to [0, 1]."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
        raise RewardError(
            f"the reward {name} got images of shape {tuple(images.shape)}, {images.dtype}: give (B, 3, H, W) or "
            "(B, 1, H, W), floating point, in [0, 1]"
        )
    if len(prompts) != len(images):
        raise RewardError(f"the reward {name} got {len(images)} images and {len(prompts)} prompts: give one for each")
    inside = ((images > -OUTSIDE) & (images < 1 + OUTSIDE)).flatten(1).all(1)  # False where NaN
    if not bool(inside.all()):
        first = int(inside.logical_not().nonzero()[0])
        raise RewardError(
            f"the reward {name} got images[{first}] with values that are not finite or out of [0, 1]: decode "
            "states and clamp them; if the solver makes NaN, start from another table"
        )
    return images.detach().clamp(0, 1).expand(-1, 3, -1, -1)


def _checked(name: str, scores: object, count: int) -> Tensor:
    if not isinstance(scores, Tensor) or scores.shape != (count,) or scores.is_complex():
        kind = f"shape {tuple(scores.shape)}, {scores.dtype}" if isinstance(scores, Tensor) else type(scores).__name__
        raise RewardError(
            f"the reward {name} returned {kind} for {count} pictures: return a tensor of shape ({count},), one real "
            "score for each"
        )
    out = scores.detach().to("cpu", torch.float64)
    if not bool(out.isfinite().all()):
        first = int(out.isfinite().logical_not().nonzero()[0])
        raise RewardError(
            f"the reward {name} gave scores[{first}] = {float(out[first])}, which is not finite: return a finite score "
            "for every picture, a low one for a picture that cannot be scored"
        )
    return out


@dataclass(frozen=True)
class Normalisation:
    """The unit of a reward: mean and standard deviation of its raw scores.

    Args:
        mean: finite.
        std: >= 0, finite; one of rounding alone, up to 1e-8 |mean|, counts as 1 (`scale`).
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 <= self.std < math.inf):
            raise ValueError(f"mean = {self.mean}, std = {self.std}: must be finite, and std >= 0")

    @property
    def scale(self) -> float:
        """What scores are divided by.

        1 for a reward that was constant: what it gains later counts in its own unit, not times a huge number.
        """
        return self.std if self.std > CONSTANT * abs(self.mean) else 1.0


def normalisation(raw: Tensor) -> Normalisation:
    """Mean and standard deviation (of all B, not B - 1) of raw scores (B,), B >= 1; exact where all are equal."""
    if raw.ndim != 1 or not len(raw):
        raise ValueError(f"raw scores have shape {tuple(raw.shape)}: give (B,), at least one")
    above = raw.double() - raw[0].double()
    return Normalisation(float(raw[0]) + float(above.mean()), float(above.std(correction=0)))


def combined(raw: Mapping[str, Tensor], weights: Mapping[str, float], scales: Mapping[str, Normalisation]) -> Tensor:
    """sum_i w_i (raw_i - mean_i) / std_i, (B,) float64, over the rewards by name.

    A reward that is constant adds zero.

    Args:
        raw: (B,) each, as `measured` has them.
        weights: finite, of the same names; negative for what shall be small.
        scales: of the same names, fixed at the start of a run, so that the sum keeps its meaning.

    Raises:
        ValueError: for names that differ, none at all, shapes that differ, or a weight that is not finite.
    """
    if not raw or not raw.keys() == weights.keys() == scales.keys():
        names = ", ".join(f"{k}: {sorted(v)}" for k, v in (("raw", raw), ("weights", weights), ("scales", scales)))
        raise ValueError(f"raw scores, weights and scales must be of the same rewards, at least one; {names}")
    shapes = {name: tuple(scores.shape) for name, scores in raw.items()}
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 1:
        raise ValueError(f"raw scores have shapes {shapes}: give (B,) for each reward")
    bad = {name: weight for name, weight in weights.items() if not math.isfinite(weight)}
    if bad:
        raise ValueError(f"weights {bad} are not finite: give each reward a number")
    terms = [weights[k] * (scores.double() - scales[k].mean) / scales[k].scale for k, scores in raw.items()]
    return torch.stack(terms).sum(0)
