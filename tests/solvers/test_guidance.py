"""Tables that scale the guidance: the same as a denoiser bound to it, in every family and by every answer."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.guided import LABELS, classes, guided_network, scaled
from helpers.recording import elementwise, normal
from helpers.tables import FAMILIES, PLAIN, SIGMAS
from torch import Tensor

import epd
from epd.solvers.answers import serial
from epd.solvers.auto import auto
from epd.solvers.capture import capture
from epd.solvers.graphs import EagerGraph
from epd.solvers.grow import split_step
from epd.solvers.parallel import Coefficients, parallel
from epd.solvers.walk import Ask, plan

NOISE = normal(5, 2, 3)
MODEL = classes().bind(LABELS, 3.0)
NAMES = ("guidance_scale", "anchor_guidance")


def solved(table: epd.Table, guidance: float = 3.0, noise: Tensor = NOISE) -> Tensor:
    return epd.solve(table.rule(), classes().bind(LABELS, guidance), noise, table.sigmas)


def constant(table: epd.Table, factor: float) -> epd.Table:
    anchor = np.full(table.num_steps, factor)
    anchor[0] = 1.0 if table.moves_first_call else factor
    return dataclasses.replace(table, guidance_scale=np.full(table.nodes.shape, factor), anchor_guidance=anchor)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_factor_everywhere_is_another_guidance(name: str) -> None:
    table = FAMILIES[name]
    torch.testing.assert_close(solved(constant(table, 0.4)), solved(table, 1.2), rtol=1e-10, atol=1e-10)
    # A point's factor is its own: those of one step alone change the result, and not to that of all.
    if table.num_nodes and table.used[2].lookahead[0]:
        own = np.ones(table.nodes.shape)
        own[2, 0] = 0.4
        assert float((solved(dataclasses.replace(table, guidance_scale=own)) - solved(table)).abs().max()) > 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_and_node_orders_agree(name: str) -> None:
    table = scaled(FAMILIES[name])
    expected = solved(table)
    for answer in (serial, auto()):
        found = epd.solve(table.rule(), MODEL, NOISE, table.sigmas, answer)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(solved(table.sorted()), expected, rtol=1e-10, atol=1e-10)


def test_factors_of_one_ask_for_what_was_asked_before() -> None:
    for table in FAMILIES.values():
        assert not table.scales_guidance and constant(table, 1.0) == table
        assert all(ask.guidance is None for step in plan(table.rule(), table.sigmas) for ask in step)
        asks = [ask for step in plan(scaled(table).rule(), table.sigmas) for ask in step]
        assert all(ask.guidance is not None and ask.guidance.shape == ask.sigma.shape for ask in asks)


def test_every_sample_may_have_factors_of_its_own() -> None:
    """As in reinforcement learning: one call a stage, the result of separate solves; sigmas shared or their own."""
    tables = [scaled(FAMILIES["mixed calls"], seed) for seed in range(5)]
    each = [table.coefficients() for table in tables]
    for shared in (True, False):
        fields = {name: torch.stack([getattr(c, name) for c in each], -1) for name in (*NAMES, "nodes")}
        if not shared:
            fields["sigmas"] = torch.stack([c.sigmas * torch.tensor(1 + 0.01 * i) for i, c in enumerate(each)], -1)
        c = dataclasses.replace(each[0], **fields)
        found = epd.solve(parallel(c), MODEL, NOISE, c.sigmas)
        for i, label in enumerate(LABELS):
            own: Coefficients = each[i] if shared else dataclasses.replace(each[i], sigmas=c.sigmas[:, i])
            one = epd.solve(parallel(own), classes().bind([label], 3.0), NOISE[i : i + 1], own.sigmas)
            torch.testing.assert_close(found[i : i + 1], one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("whole", [False, True])
def test_captured(whole: bool) -> None:
    table, model = scaled(FAMILIES["dense, two points"]), guided_network().for_seeds(LABELS)
    run = capture(table.rule(), model, NOISE.shape, NOISE.dtype, SIGMAS, whole, device="cpu", make_graph=EagerGraph)
    with torch.no_grad():
        assert torch.equal(run(NOISE.flip(0)), epd.solve(table.rule(), model, NOISE.flip(0), SIGMAS))
    assert run.replays.kept == 1


def test_a_split_step_computes_the_same() -> None:
    for name in ("dense", "dense, two points", "dense, no fan"):
        table = scaled(FAMILIES[name])
        grown = split_step(table, 1, 5.0)
        assert grown.scales_guidance and grown.anchor_guidance[2] == 1
        torch.testing.assert_close(solved(grown), solved(table), rtol=1e-8, atol=1e-8)


def test_who_cannot_be_guided_is_told() -> None:
    table = scaled(PLAIN)
    with pytest.raises(ValueError, match="has no at_guidance"):
        epd.solve(table.rule(), elementwise, NOISE, table.sigmas)
    with pytest.raises(ValueError, match="guidance of classes is to be scaled, and it is bound with guidance 1"):
        solved(table, 1.0)
    with pytest.raises(ValueError, match=r"guidance has shape \(2,\), needed is that of sigma, \(1,\)"):
        Ask(NOISE[None], torch.ones(1), guidance=torch.ones(2))


def test_files_are_of_version_3_only_where_a_factor_is_not_1(tmp_path: Path) -> None:
    for name, table in FAMILIES.items():
        document = scaled(table).to_dict()
        assert document["version"] == 3 and set(NAMES if table.num_nodes else NAMES[1:]) <= set(document)
        scaled(table).save(tmp_path / "table.json")
        back = epd.Table.load(tmp_path / "table.json")
        assert back == scaled(table) and back.digest == scaled(table).digest != table.digest, name
        kept = {key: value for key, value in document.items() if key not in NAMES}
        assert epd.Table.from_dict(kept) == table  # what version 3 holds else is what version 2 does
        assert constant(table, 1.0).to_dict() == table.to_dict() and table.to_dict()["version"] < 3


HOSTILE = {
    r"guidance_scale\[0, 1\] = 0.0 must be > 0": {"guidance_scale": [[1.0, 0.0], [1.0, 1.0]]},
    r"anchor_guidance\[1\] = -2.0 must be > 0": {"anchor_guidance": [1.0, -2.0]},
    r"guidance_scale has shape \(2, 1\), needed \(2, 2\)": {"guidance_scale": [[1.0], [1.0]]},
    "anchor_guidance holds 'nan', which is not": {"anchor_guidance": [1.0, float("nan")]},
    "anchor_guidance must be nested lists": {"anchor_guidance": 2.0},
    r"anchor_guidance\[0\] = 2.0 must be 1: the first slope is analytic": {"anchor_guidance": [2.0, 1.0], "afs": True},
    "unknown key 'anchor_guidance'; known in version 2": {"anchor_guidance": [2.0, 1.0], "version": 2},
}


@pytest.mark.parametrize("message", HOSTILE)
def test_what_no_factor_can_be(message: str) -> None:
    document = copy.deepcopy(json.loads(json.dumps(scaled(PLAIN).to_dict())))
    del document["guidance_scale"]
    with pytest.raises(epd.TableError, match=message):
        epd.Table.from_dict({**document, **HOSTILE[message]})
