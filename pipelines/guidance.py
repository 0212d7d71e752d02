"""Another guidance scale for each point of a call, after the pipeline has combined both halves of it with its own.

What the pipeline makes of its network's output is m = u + g (c - u). With a factor f of the guidance the solver takes
u + f g (c - u) = u + f (m - u), which needs neither g nor c, and holds whatever the network predicts. Which half of the
output is the unconditional one, no pipeline says: m lies on the line through both, beyond the conditional one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

OFF_LINE = 0.05  # of the way from u to m, what m may lie beside the line through both halves
ROUNDED = 4  # units in the last place, beside that: halves may be nearly equal
BEYOND = 1e-3  # a guidance scale is that much above 1 at least
REMEDY = (
    "give a guidance_scale above 1 and neither guidance_rescale nor other kinds of guidance, or take a table whose "
    "guidance_scale and anchor_guidance are 1"
)


@dataclass(frozen=True)
class Combination:
    """How a pipeline combines the halves of its network's output.

    Args:
        first: the unconditional half comes first.
        sign: 1, or -1 where the pipeline negates the result.
        channels: (C,), which of them are guided; the others are the conditional half's own (Lumina's fourth).
    """

    first: bool
    sign: float
    channels: tuple[bool, ...]


def combination_of(made: Tensor, one: Tensor, other: Tensor) -> Combination | None:
    """How `made` was combined of two halves, all (R, C, ...); None where these are equal. It waits for the device.

    Raises:
        ValueError: where it is no such combination.
    """
    m, a, b = (half.detach().cpu().double() for half in (made, one, other))
    way, rest = b - a, [axis for axis in range(m.ndim) if axis != 1 or m.ndim < 4]
    if not bool(way.any()):
        return None
    rounded = ROUNDED * max(torch.finfo(half.dtype).eps for half in (made, one)) * float(m.norm())
    fits = []
    for sign in (1.0, -1.0):
        shares = ((sign * m - a) * way).sum(rest, keepdim=True) / way.square().sum(rest, keepdim=True)
        share = float(shares.nanmedian())
        plain = torch.minimum(shares.abs(), (shares - 1).abs())
        guided = ~((shares - share).abs() > plain)  # a channel of equal halves may be anything
        on_line = a + torch.where(guided, shares.nan_to_num(share), shares.round()) * way
        excess = float((sign * m - on_line).norm()) - OFF_LINE * abs(share) * float(way.norm()) - rounded
        fits.append((excess, sign, share, guided.flatten().tolist()))
    excess, sign, share, guided = min(fits)
    if excess > 0:
        raise ValueError(
            f"the table scales the guidance, but the pipeline doesn't combine the halves of its call linearly: {REMEDY}"
        )
    if -BEYOND < share < 1 + BEYOND:
        raise ValueError(f"the table scales the guidance, but the pipeline's call has none: {REMEDY}")
    return Combination(share > 1, sign, tuple(guided) if len(guided) > 1 else (True,) * m.shape[1])


@dataclass
class GuidanceScaling:
    """Of one run: what its network returned for the present call, and how the pipeline combines that."""

    outputs: list[Any] = field(default_factory=list)
    combination: Combination | None = None
    both: bool | None = None  # whether the pipeline goes on with both halves, as DiT's does; unknown at first

    def hear(self, output: Any) -> Any:  # noqa: ANN401 - any network's output
        """Keeps what a network returned; the pipeline gets it as it is."""
        self.outputs.append(output)
        return output

    def scaled(self, made: Tensor, factors: Tensor, channels: int) -> Tensor:
        """What the pipeline made of the outputs that were heard, as if its guidance scale had been factors times that.

        Args:
            made: (R, C, ...), R rows, or twice, where the pipeline goes on with both halves.
            factors: (K,), of the rows in turn.
            channels: of the state; what stands behind them is dropped.

        Raises:
            ValueError: where the call was not one of two halves, or they are not combined linearly.
        """
        one, other = self._halves(made)
        n = len(one)
        m, one, other = (rows[:, :channels] for rows in (made[:n], one, other))
        if m.shape != one.shape:
            raise ValueError(
                f"the table scales the guidance, but the pipeline reshapes its network's output of {tuple(one.shape)} "
                f"to {tuple(m.shape)}: take a table whose guidance_scale and anchor_guidance are 1"
            )
        both = len(made) > n
        if self.combination is None:
            self.combination, self.both = combination_of(m, one, other), both
        how = self.combination
        # Where guidance ends in the middle of a run, two samples look like the two halves of one.
        if self.both != both or (how is None and both):
            raise ValueError(f"the table scales the guidance, but the pipeline's call has none: {REMEDY}")
        if how is None:
            return made[:, :channels]
        free = (one if how.first else other).to(m.dtype)
        f = factors.to(m.dtype).to(m.device).repeat(n // len(factors)).reshape(-1, *[1] * (m.ndim - 1))
        moved = torch.lerp(how.sign * free, m, f)
        if not all(how.channels):
            mask = torch.tensor(how.channels, device=m.device).reshape(-1, *[1] * (m.ndim - 2))
            moved = torch.where(mask, moved, m)
        return moved if len(made) == n else torch.cat([moved, moved])

    def _halves(self, made: Tensor) -> tuple[Tensor, Tensor]:
        """Both halves of the one output of the present call, which is then forgotten."""
        heard, self.outputs = self.outputs, []
        if not heard:
            raise ValueError(
                "the table scales the guidance, but the network was not heard: was epd.enable called on this pipeline, "
                "after its networks were last replaced?"
            )
        output = _tensor(heard[0])
        rows = None if output is None else len(output)
        if output is None or len(heard) > 1 or rows not in (len(made), 2 * len(made)) or len(output) % 2:
            what = "no tensor" if output is None else f"{rows} rows"
            raise ValueError(
                f"the table scales the guidance, for which the pipeline's network must be called once for both halves "
                f"of {len(made)} rows; it was called {len(heard)} times and returned {what}: {REMEDY}"
            )
        one, other = output.chunk(2)
        return one, other


def _tensor(output: Any) -> Tensor | None:  # noqa: ANN401 - any network's output
    """The tensor of an output, whatever it is wrapped in; None for lists of one per sample."""
    while isinstance(output, tuple) or (isinstance(output, dict) and output):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output if isinstance(output, Tensor) else None
