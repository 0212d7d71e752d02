"""What was measured before is not taken for what another reward or extractor would say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from helpers.toy_pictures import TinyFeatures, picture_mixture, rough_table, saved_pictures
from torch import Tensor

import epd
from epd.evaluation.extractors import FeatureError
from epd.evaluation.stats_files import ReferenceError

Score = Callable[[Tensor, Sequence[str]], Tensor]


def score(tmp_path: Path, reward: Score, samples: int = 44) -> float:
    """Mean of a reward that is always called the same."""
    if not (tmp_path / "reference").exists():
        saved_pictures(tmp_path / "reference")
    found = epd.evaluate(
        picture_mixture(), {"ours": rough_table()}, TinyFeatures(), tmp_path / "reference", tmp_path / "keep", samples,
        rewards={"mine": reward},
    )  # fmt: skip
    (row,) = found.rows
    return row.rewards["mine"].mean


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.mean((1, 2, 3))


def test_a_reward_that_was_changed_is_asked_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = score(tmp_path, brightness)
    assert score(tmp_path, lambda images, prompts: 5 + brightness(images, prompts)) == pytest.approx(5 + before)
    assert "computing it anew" in caplog.text
    more = score(tmp_path, lambda images, prompts: 5 + brightness(images, prompts), 60)
    assert more == pytest.approx(5 + before, abs=0.2)  # none of the scores from before is among them


def test_a_reward_that_is_random_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    generator = torch.Generator().manual_seed(0)
    first = score(tmp_path, lambda images, prompts: torch.rand(len(images), generator=generator))
    assert score(tmp_path, lambda images, prompts: torch.rand(len(images), generator=generator)) == first
    assert "anew" not in caplog.text


@pytest.mark.parametrize(
    ("width", "error", "message"),
    [
        (0, FeatureError, r"are of shape \(\d+, 0\).*return \(\d+, F\)"),
        (4, ReferenceError, "are the same for all .* pictures of .*reference, and so would be those of any samples"),
    ],
)
def test_features_that_tell_nothing_are_refused(
    width: int, error: type[ValueError], message: str, tmp_path: Path
) -> None:
    """Their distances are 0: a perfect mark for every solver."""
    saved_pictures(tmp_path / "reference")
    with pytest.raises(error, match=message):
        epd.evaluate(
            picture_mixture(), {"ours": rough_table()}, lambda x: torch.ones(len(x), width), tmp_path / "reference",
            tmp_path / "keep", 44,
        )  # fmt: skip
