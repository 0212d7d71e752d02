"""Rewards by name: the verifier, functions of one's own, and names that are none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from epd.denoisers.shapes_verifier import verify
from epd.rl.reward import RewardError, measured
from epd.rl.rewards import load_reward

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a red cross", "a red cross above a blue square"]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "brightness.py").write_text(
        "def bright(images, prompts):\n    return images.mean((1, 2, 3))\n"
        "def alone(images):\n    return 0\n"
        "number = 3\n"
    )
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "needs.py").write_text("import no_such_package_of_anybody\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in ("brightness", "broken", "needs", "epd_own_reward_brightness", "epd_own_reward_broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("kind", ["all", "frac", "graded"])
def test_the_verifier_of_shapes_is_a_reward(kind: str) -> None:
    reward = load_reward(f"shapes-{kind}")
    assert reward.name == f"shapes-{kind}"
    assert measured(reward, IMAGES, PROMPTS).tolist() == getattr(verify(IMAGES, PROMPTS), kind).tolist()
    with pytest.raises(RewardError, match=r"shapes-\w+ failed on 2 pictures"):
        measured(reward, IMAGES, ["a red fox", "fox"])


@pytest.mark.parametrize("spec", ["brightness:bright", "{}/brightness.py:bright"])
def test_functions_of_ones_own_are_rewards(own: Path, spec: str) -> None:
    spec = spec.format(own)
    reward = load_reward(spec)
    assert reward.name == spec
    assert torch.equal(measured(reward, IMAGES, PROMPTS), IMAGES.mean((1, 2, 3)).double())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("brightness:birght", "brightness has no function 'birght'; it has bright, alone"),
        ("brightness:number", "has no function 'number'"),
        ("brightness:alone", r"cannot be called with images and prompts .*define f\(images, prompts\)"),
        ("missing.py:bright", "no file missing.py: --reward path/file.py:function needs one"),
        ("broken.py:bright", "broken.py fails: ZeroDivisionError"),
        ("needs:bright", "cannot be imported .*no_such_package_of_anybody.*install what it needs"),
        ("pickscore:some", "cannot be imported .*pick-score:ID_OR_PATH"),
        ("shapes-al", "'shapes-al' is unknown: perhaps you meant 'shapes-all'; there are shapes-all, .*py:function"),
        ("clipscore:openai/clip", "unknown: perhaps you meant 'clip-score'; there are .*clip-score:ID_OR_PATH"),
        ("clip-score", "unknown: perhaps you meant 'clip-score'; there are .*clip-score:ID_OR_PATH"),
        ("hps:", "unknown: perhaps you meant 'hps'; there are .*hps:PATH"),
        ("", "'' is unknown: there are"),
    ],
)
def test_what_is_no_reward_is_named_with_what_there_is(own: Path, spec: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        load_reward(spec)


def test_names_alone_import_neither_transformers_nor_torchvision() -> None:
    code = (
        "import sys\nfrom epd.rl.rewards import load_reward\nload_reward('shapes-all')\n"
        "assert not {'transformers', 'torchvision'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
