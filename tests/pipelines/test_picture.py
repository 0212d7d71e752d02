"""The picture and the card of a table: what they show is what the solver does."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from helpers.guided import scaled
from helpers.tables import FAMILIES, PLAIN, dense_table
from PIL import ImageDraw, ImageFont

import epd
from epd.pipelines.card import card
from epd.pipelines.picture import ANALYTIC, ANCHOR, FAN, ROW, TOP, WIDTH, discs, draw, legend, title

every_family = pytest.mark.parametrize("name", FAMILIES)


def colours(table: epd.Table, n: int) -> set[tuple[int, int, int]]:
    """Those of a step's row."""
    row = np.asarray(draw(table))[TOP + ROW * n : TOP + ROW * (n + 1), 150:]
    return {(int(r), int(g), int(b)) for r, g, b in np.unique(row.reshape(-1, 3), axis=0)}


@every_family
def test_every_network_evaluation_is_drawn_and_no_other(name: str) -> None:
    table = FAMILIES[name]
    drawn = [disc for n in range(table.num_steps) for disc in discs(table, n)]
    assert sum(disc.evaluated for disc in drawn) == table.nfe
    assert all(disc.evaluated == (disc.colour != ANALYTIC) for disc in drawn)
    own = table.anchor.sum() + (table.weights * table.slope_scale).sum()
    assert sum(disc.weight for disc in drawn) == pytest.approx(own)


def test_a_step_of_no_call_has_an_analytic_slope_and_nothing_else() -> None:
    table = dense_table(calls=9)
    assert colours(table, 0) & {ANALYTIC, ANCHOR, FAN} == {ANALYTIC}
    for n in range(1, 10):
        assert colours(table, n) & {ANALYTIC, ANCHOR, FAN} == {ANCHOR, FAN}
    for n in range(1, 4):
        assert colours(dense_table(0), n) & {ANALYTIC, ANCHOR, FAN} == {ANCHOR}


def test_an_evaluation_of_no_weight_has_a_tick() -> None:
    assert PLAIN.anchor.tolist() == [0, 0]
    assert ANCHOR in colours(PLAIN, 0)
    assert ANCHOR not in colours(dataclasses.replace(PLAIN, afs=True), 0)
    assert ANCHOR in colours(FAMILIES["one call, AFS"], 0)  # whose analytic slope is its memory


@every_family
def test_the_legend_names_what_is_drawn(name: str) -> None:
    table, text = FAMILIES[name], " ".join(legend(FAMILIES[name]))
    drawn = {disc.colour for n in range(table.num_steps) for disc in discs(table, n)}
    assert {ANALYTIC: "grey" in text, FAN: "orange" in text, ANCHOR: "blue" in text} == {
        colour: colour in drawn for colour in (ANALYTIC, FAN, ANCHOR)
    }
    assert ("earlier slopes are not drawn" in text) == bool(table.memory.any())


def test_the_longest_legend_and_title_fit() -> None:
    table = dense_table(2, calls=9)
    pen = ImageDraw.Draw(draw(table))
    assert all(pen.textlength(line, ImageFont.load_default(18)) < WIDTH - 40 for line in legend(table))
    assert pen.textlength(title(table), ImageFont.load_default(24)) < WIDTH - 40


def test_titles() -> None:
    tables = [
        dense_table(0, calls=9),
        dense_table(calls=9),
        dataclasses.replace(PLAIN, afs=True),
        epd.Table([2, 1], [[0.5]], [[1]]),
    ]
    assert [title(table) for table in tables] == [
        "10 steps: 9 sequential calls, 9 evaluations, analytic first step",
        "10 steps, 1 point: 9 sequential calls, 18 evaluations, analytic first step",
        "2 steps, 2 points: 3 sequential calls, 5 evaluations, analytic first slope",
        "1 step, 1 point: 2 sequential calls, 2 evaluations",
    ]


def written(table: epd.Table) -> str:
    text = card(table, "me/solver", None, {}, "me/model", [])
    return text[text.index("## Table") :]


def test_the_card_of_a_dense_table() -> None:
    table = dense_table()
    text = written(table)
    first, second = (line for line in text.splitlines() if re.match(r"\| [12] \| \d+ \| [\d.]+ \| ", line))
    assert first == f"| 1 | 40 | 9 | {table.anchor[0]:.4f} (analytic) | - | 0 |"
    node, scale = table.nodes[1, 0], table.sigma_scale[1, 0]
    assert second == (
        f"| 2 | 9 | 2.5 | {table.anchor[1]:.4f} ({table.anchor_scale[1] * 9:.4g}) | "
        f"{node:.4f}: {table.weights[1, 0]:.4f} ({scale * 2.5**node * 9 ** (1 - node):.4g}) | 1 |"
    )
    assert "The weights of a step are free: they need not sum to one." in text
    assert "Told sigma: the noise level that the network is told there." in text
    m = [f"{weight:.4f}" for weight in table.memory[3]]
    assert f"| 4 | {m[0]} {m[1]}; {m[2]} {m[3]}; {m[4]} |" in text
    d = [f"{weight:.4f}" for weight in table.effective_lookahead[2, 0]]  # type: ignore[index]
    assert f"| 3 | 1 | - | {d[1]} {d[2]}; {d[3]} |" in text


def test_the_card_of_a_table_that_scales_the_guidance() -> None:
    table = scaled(dense_table())
    text = written(table)
    assert "Guidance: factors of the guidance scale that the pipeline is called with." in text
    assert f"| 1 | - | - |\n| 2 | {table.anchor_guidance[1]:.4f} | {table.guidance_scale[1, 0]:.4f} |\n" in text
    assert "Guidance" not in written(dense_table())


def test_the_card_of_a_plain_table_says_no_more_than_there_is() -> None:
    text = written(PLAIN)
    assert "| 1 | 4 | 2 | 0.0000 | 0.3000: 0.2500 | 0.8000: 0.7500 | 2 |" in text
    assert not {"told", "Memory", "Look-ahead", "free", "analytic"} & set(re.findall(r"[\w-]+", text))


@every_family
def test_cards_have_rows_as_long_as_their_heads(name: str) -> None:
    lines = written(FAMILIES[name]).splitlines()
    for head, line in zip(lines, lines[1:], strict=False):
        if head.startswith("|") and line.startswith("|"):
            assert head.count("|") == line.count("|")
