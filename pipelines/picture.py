"""A table as a picture: where each step evaluates, and how much each evaluation counts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..solvers.table import Table

if TYPE_CHECKING:
    from PIL.Image import Image

INK, PALE, FAN, ANCHOR = (40, 40, 40), (200, 200, 200), (214, 96, 43), (33, 113, 181)
WIDTH, ROW, LEFT, TOP = 1200, 56, 190, 84


def draw(table: Table) -> Image:
    """One line per step on a common axis of log sigma, noise at the left; a disc's area is its weight in the update.

    Blue is the anchor (pale ring: evaluated, but of no weight), orange are the fan points; a negative weight is hollow.
    """
    from PIL import Image, ImageDraw, ImageFont

    sigmas = table.sigmas
    high, low = math.log(sigmas[0]), math.log(sigmas[-1])
    image = Image.new("RGB", (WIDTH, TOP + ROW * table.num_steps + 40), "white")
    pen, font, large = ImageDraw.Draw(image), ImageFont.load_default(18), ImageFont.load_default(24)

    def where(sigma: float) -> float:
        return LEFT + (high - math.log(sigma)) / (high - low) * (WIDTH - LEFT - 50)

    def disc(sigma: float, y: float, weight: float, colour: tuple[int, int, int]) -> None:
        r, x = 17 * math.sqrt(min(abs(weight), 1.5)), where(sigma)
        edge = "white" if weight > 0 else colour  # white, so that overlapping discs can be told apart
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour if weight > 0 else None, outline=edge, width=2)

    pen.text((20, 16), title(table), INK, large)
    pen.text((20, 50), "log sigma, noise left; area: weight in the update; blue: anchor, orange: fan", INK, font)
    for n in range(table.num_steps):
        y = TOP + ROW * n + ROW // 2
        pen.text((20, y - 11), f"{n + 1}: {sigmas[n]:.4g} to {sigmas[n + 1]:.4g}", INK, font)
        pen.line((where(sigmas[n]), y, where(sigmas[n + 1]), y), PALE, 3)
        disc(sigmas[n], y, float(table.anchor[n]), ANCHOR)
        fan = zip(table.weights[n].tolist(), table.nodes[n].tolist(), strict=True)
        for weight, r in sorted(fan, key=lambda point: -abs(point[0])):  # small ones on top
            disc(sigmas[n + 1] ** r * sigmas[n] ** (1 - r), y, weight, FAN)
        if n or not (table.afs or table.calls[0] == 0):
            pen.ellipse((where(sigmas[n]) - 5, y - 5, where(sigmas[n]) + 5, y + 5), outline=ANCHOR, width=2)
    return image


def title(table: Table) -> str:
    """Steps, points, and cost in one line."""
    afs = ", analytic first slope" if table.afs or table.calls[0] == 0 else ""
    return (
        f"{table.num_steps} steps, {table.num_nodes} points: {table.depth} sequential calls, "
        f"{table.nfe} evaluations{afs}"
    )
