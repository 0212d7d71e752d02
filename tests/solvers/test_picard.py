"""ParaDiGMS: Euler's states where nothing moves any more, in as many calls and rows as its windows say."""

from __future__ import annotations

import pytest
import torch
from helpers.toy_models import toy_mixture
from torch import Tensor

import epd
from epd.denoisers.noise import unit_noise
from epd.denoisers.protocol import Path
from epd.solvers.picard import picard

STEPS, SAMPLES = 12, 8
PATHS: tuple[Path, ...] = ("ve", "flow")


class Recorded:
    """A toy mixture that keeps the rows of every call."""

    def __init__(self, path: Path) -> None:
        self.model, self.rows = toy_mixture(path), list[Tensor]()
        self.sigmas = epd.schedules.polynomial(STEPS, self.model.sigma_min, self.model.sigma_max, 3)
        self.noise = unit_noise(range(SAMPLES), self.model.shape, torch.float64)
        self.euler = epd.solve(epd.rules.euler(), self.model, self.noise, self.sigmas)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.rows.append(sigma)
        return self.model(x, sigma)

    @property
    def widths(self) -> list[int]:
        """Rows of each call, per sample."""
        return [len(rows) // SAMPLES for rows in self.rows]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("window", [1, 4, STEPS, 3 * STEPS])
def test_without_tolerance_it_is_euler_after_as_many_calls_as_steps(path: Path, window: int) -> None:
    toy = Recorded(path)
    end = picard(toy, toy.noise, toy.sigmas, window, path=path)
    torch.testing.assert_close(end, toy.euler, rtol=1e-12, atol=1e-12)
    # Each call settles one step at least, and no state of this model settles before it has to.
    assert toy.widths == [min(window, STEPS - n) for n in range(STEPS)]


@pytest.mark.parametrize("path", PATHS)
def test_a_tolerance_saves_calls_and_bounds_the_error(path: Path) -> None:
    errors, calls = [], []
    for tolerance in (0.3, 0.03, 0.003):
        toy = Recorded(path)
        end = picard(toy, toy.noise, toy.sigmas, STEPS, tolerance, path=path)
        errors.append(float((end - toy.euler).square().mean().sqrt()))
        calls.append(len(toy.rows))
        assert errors[-1] < 2 * tolerance
    assert errors == sorted(errors, reverse=True) and calls == sorted(calls) and calls[0] < STEPS // 2


def test_each_iterate_is_the_sum_of_the_slopes_along_the_one_before() -> None:
    toy = Recorded("flow")
    strides = toy.sigmas.diff()[:, None, None, None, None]
    states = toy.noise.expand(STEPS + 1, *toy.noise.shape).clone()
    for most in (1, 2, 3):
        slopes = [(x - toy.model(x, sigma)) / sigma for x, sigma in zip(states[:-1], toy.sigmas, strict=False)]
        states = torch.cat([toy.noise[None], toy.noise + (strides * torch.stack(slopes)).cumsum(0)])
        end = picard(toy.model, toy.noise, toy.sigmas, STEPS, most=most, path="flow")
        torch.testing.assert_close(end, states[-1], rtol=1e-11, atol=1e-11)


def test_where_slopes_are_known_everywhere_one_call_is_right_and_a_second_one_sees_it() -> None:
    noise, rows = unit_noise(range(3), (2,), torch.float64), []

    def constant(x: Tensor, sigma: Tensor) -> Tensor:
        rows.append(len(x) // len(noise))
        return x - sigma[:, None] * torch.tensor([0.5, -2.0], dtype=torch.float64)

    end = picard(constant, noise, epd.schedules.polynomial(10, 0.1, 5.0), 10, 1e-9)
    exact = noise * 5.0 + (0.1 - 5.0) * torch.tensor([0.5, -2.0], dtype=torch.float64)
    torch.testing.assert_close(end, exact, rtol=1e-12, atol=1e-12)
    assert rows == [10, 9]


@pytest.mark.parametrize("window", [3, STEPS])
def test_a_sample_does_not_depend_on_its_batch(window: int) -> None:
    toy = Recorded("ve")
    together = picard(toy, toy.noise, toy.sigmas, window, 0.1, most=5)
    alone = torch.cat([picard(toy.model, one[None], toy.sigmas, window, 0.1, most=5) for one in toy.noise])
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-11)
    assert len(toy.rows) <= 5 and max(toy.widths) <= window


def test_what_is_refused() -> None:
    toy = Recorded("ve")
    for window, tolerance, most in ((0, 0.1, None), (2, -0.1, None), (2, 0.1, 0)):
        with pytest.raises(ValueError, match="at least 1, 0 and 1"):
            picard(toy, toy.noise, toy.sigmas, window, tolerance, most)
