"""A policy's file: the same bits back, and whatever else is named is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import tables
from helpers.policies import CASES, TABLES, generator, moved
from safetensors import safe_open
from safetensors.torch import load, save

from epd.rl.policy import Policy
from epd.rl.policy_file import PolicyError, load_policy, save_policy


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_policy_comes_back_to_the_bit(name: str, kind: str, tmp_path: Path) -> None:
    policy = moved(Policy(TABLES[name], kind, context_size=3, width=8))
    save_policy(policy, tmp_path / "p.safetensors")
    again = load_policy(tmp_path / "p.safetensors")
    assert again.structure.base == TABLES[name] and again.structure.kind == policy.structure.kind
    context = torch.randn(4, 3, generator=generator())
    one, other = (p.sample(4, generator(), context).values for p in (policy, again))
    assert torch.equal(one, other)


def test_what_is_no_policy_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    save_policy(Policy(tables.PLAIN), path)
    whole, weights = path.read_bytes(), load(path.read_bytes())
    with safe_open(path, framework="pt") as file:
        own = file.metadata()
    wide = torch.zeros(10**5, 1, dtype=torch.float64)
    other = {**own, "parametrisation": own["parametrisation"].replace("nodes", "knots")}
    hostile = {
        "safetensors|header|deserializ": whole[:-100],
        "'base'": save(weights),
        "format = None": save(weights, {**own, "base": "{}"}),
        "give some of": save(weights, other),
        "not finite": save({**weights, "last.bias": weights["last.bias"] / 0}, own),
        "does not fit the others": save({**weights, "hidden.weight": wide}, own),
        "Missing key": save({name: w for name, w in weights.items() if name != "last.bias"}, own),
    }
    for problem, data in hostile.items():
        path.write_bytes(data)
        with pytest.raises(PolicyError, match=f"(?is)is no policy of ours.*({problem})"):
            load_policy(path)
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(tmp_path)
