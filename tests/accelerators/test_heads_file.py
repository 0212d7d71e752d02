"""A policy's file: the same bits back, and one clear error for whatever else stands there."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.heads import layout_of, saved, undecided
from safetensors import safe_open
from safetensors.torch import load, save

import epd
from epd.accelerators.heads_file import KEY, load_heads
from epd.denoisers.as_network import AsNetwork
from epd.denoisers.digits import digits_exact
from epd.solvers.schedules import logsnr

LAYOUT = layout_of(1, 5, heads=("step", "cache", "sparse"), levels=(0.9, 0.5), costs=(0.95, 0.7))
JUNK: list[Any] = [None, -1, 0, 10**9, 1e308, "x", [], {}, [1], True, "\ud800", [[]], 0.5, {"a": {"b": []}}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(saved(undecided(LAYOUT), tmp_path))


def test_a_policy_comes_back_to_the_bit(path: Path) -> None:
    heads, learned = load_heads(path)
    assert heads.layout == LAYOUT and learned.metrics == {"calls": 3.0} and learned.sigmas == (5, 4, 3, 2, 1, 0)
    expected = undecided(LAYOUT).state_dict()
    assert list(heads.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in heads.state_dict().items())
    assert not any(p.requires_grad for p in heads.parameters())


def mutated(whole: bytes, metadata: dict[str, str], rng: random.Random) -> bytes:
    """A file with one fault: bytes cut or changed, a tensor lost, bent or not finite, or a number of its text replaced.
    """
    kind = rng.randrange(6)
    if kind == 0:
        return whole[: rng.randrange(len(whole))]
    if kind == 1:
        at = rng.randrange(min(len(whole), 2000))
        return whole[:at] + bytes([rng.randrange(256)]) + whole[at + 1 :]
    tensors = load(whole)
    name = rng.choice(sorted(tensors))
    if kind == 2:
        del tensors[name]
    elif kind == 3:
        tensors[name] = rng.choice([tensors[name] / 0, tensors[name].double(), tensors[name][:0], tensors[name][None]])
    elif kind == 4:
        tensors[name + "x"] = torch.zeros(1)
    else:
        told = json.loads(metadata[KEY])
        part = told[rng.choice(["layout", "learned"])]
        change: Callable[[], object] = rng.choice(
            [
                lambda: part.__setitem__(rng.choice(sorted(part)), rng.choice(JUNK)),
                lambda: part.pop(rng.choice(sorted(part))),
                lambda: part.__setitem__("further", 1),
                lambda: told.pop("layout"),
            ]
        )
        change()
        metadata = {KEY: json.dumps(told)}
    return save(tensors, metadata)


def test_two_hundred_faults_give_one_clear_error_each(path: Path) -> None:
    """What a changed byte leaves whole, such as a weight, is loaded; nothing else happens."""
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    rng, refused = random.Random(0), 0
    for _ in range(200):
        path.write_bytes(mutated(whole, metadata, rng))
        try:
            heads, learned = load_heads(path)
        except ValueError as error:
            told = str(error)
            assert told.startswith(str(path)) and told.count("give the policy.safetensors") == 1 and len(told) < 500
            refused += 1
        else:
            assert heads.layout.channels == 1 and len(learned.sigmas) == 6
    assert refused > 150


def test_what_is_no_file_says_so(tmp_path: Path) -> None:
    for own in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(ValueError, match="cannot be read"):
            load_heads(own)


def test_a_policy_of_another_states_shape_is_refused_before_it_runs(tmp_path: Path) -> None:
    path = saved(undecided(layout_of(3, 5)), tmp_path)
    with pytest.raises(ValueError, match="states of 3 channels"):
        model = epd.accelerate(AsNetwork(digits_exact()), epd.RAPID3(path))
        epd.solve(epd.rules.euler(), model.for_seeds([0]), torch.zeros(1, 1, 8, 8), logsnr(5, 0.1, 1.0))
