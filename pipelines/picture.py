"""A table as a picture: where each step evaluates, and how much each evaluation counts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..solvers.table import Table
from .table_text import has_analytic_anchor, point_sigmas

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

INK, PALE, FAN, ANCHOR, ANALYTIC = (40, 40, 40), (200, 200, 200), (214, 96, 43), (33, 113, 181), (120, 120, 120)
WIDTH, ROW, LEFT, TOP, RIGHT = 1200, 56, 190, 106, 50
LARGEST, TICK = 20, 20  # pixels from the axis: a disc's largest radius, and where a tick begins


def draw(table: Table) -> Image:
    """One line per step on a common axis of log sigma, noise at the left; a disc's area is its weight in the update.

    Blue are the anchors, orange the fan points; a tick below marks every evaluation, whatever its weight; a negative
    weight is hollow. A grey disc is the weight of an analytic slope, for which the network is not asked.
    """
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (WIDTH, TOP + ROW * table.num_steps + 30), "white")
    pen, font, large = ImageDraw.Draw(image), ImageFont.load_default(18), ImageFont.load_default(24)
    pen.text((20, 16), title(table), INK, large)
    for line, text in enumerate(legend(table)):
        pen.text((20, 50 + 24 * line), text, INK, font)
    for n in range(table.num_steps):
        y = TOP + ROW * n + ROW // 2
        left, right = (_x(table, sigma) for sigma in table.sigmas[n : n + 2])
        pen.text((20, y - 11), f"{n + 1}: {table.sigmas[n]:.4g} to {table.sigmas[n + 1]:.4g}", INK, font)
        pen.line((left, y, right, y), PALE, 3)
        for disc in sorted(discs(table, n), key=lambda disc: -abs(disc.weight)):  # small ones on top
            _draw_disc(pen, _x(table, disc.sigma), y, disc)
    return image


@dataclass(frozen=True)
class Disc:
    """A slope of a step.

    Args:
        sigma: where it is taken.
        weight: in the update.
        evaluated: by the network.
    """

    sigma: float
    weight: float
    colour: tuple[int, int, int]
    evaluated: bool


def discs(table: Table, n: int) -> Iterator[Disc]:
    """A step's own slopes: the anchor, and the fan points that are evaluated."""
    analytic = has_analytic_anchor(table, n)
    yield Disc(float(table.sigmas[n]), float(table.anchor[n]), ANALYTIC if analytic else ANCHOR, not analytic)
    weights = table.weights[n] * table.slope_scale[n]
    for sigma, weight, inside in zip(point_sigmas(table, n), weights, table.used[n].lookahead, strict=True):
        if inside:
            yield Disc(float(sigma), float(weight), FAN, True)


def legend(table: Table) -> list[str]:
    """What the picture's parts mean, as far as this table has them."""
    colours = ["blue: state"]
    colours += ["orange: look-ahead point"] if any(map(any, (u.lookahead for u in table.used))) else []
    colours += ["grey: analytic slope, no network call"] if table.moves_first_call else []
    past = ["weights of earlier slopes are not drawn"] if table.memory.any() else []
    return [
        "; ".join(["log sigma, noise left", "area: weight in the update, hollow if negative", *past]),
        "; ".join([*colours, "tick: network evaluation"]),
    ]


def _x(table: Table, sigma: float) -> float:
    high, low = math.log(table.sigmas[0]), math.log(table.sigmas[-1])
    return LEFT + (high - math.log(sigma)) / (high - low) * (WIDTH - LEFT - RIGHT)


def _draw_disc(pen: ImageDraw, x: float, y: float, disc: Disc) -> None:
    radius = min(17 * math.sqrt(abs(disc.weight)), LARGEST)
    edge = "white" if disc.weight > 0 else disc.colour  # white, so that overlapping discs can be told apart
    if disc.weight:
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(box, fill=disc.colour if disc.weight > 0 else None, outline=edge, width=2)
    if disc.evaluated:
        pen.line((x, y + TICK, x, y + ROW // 2 - 2), disc.colour, 3)


def title(table: Table) -> str:
    """Steps, points, and cost in one line."""
    points = f", {table.num_nodes} point{'s' * (table.num_nodes != 1)}" if table.num_nodes else ""
    analytic = ", analytic first step" if table.calls[0] == 0 else ", analytic first slope" if table.afs else ""
    steps = f"{table.num_steps} step{'s' * (table.num_steps != 1)}"
    return f"{steps}{points}: {table.depth} sequential calls, {table.nfe} evaluations{analytic}"
