"""The row limit: no network call is larger, results are those of the whole call, each part knows its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from helpers.recording import normal
from helpers.tables import full_table
from helpers.toy_models import toy_mixture
from torch import Tensor

import epd
from epd.denoisers import row_cost
from epd.denoisers.digits import digits
from epd.denoisers.networks import NetworkDenoiser, Rows
from epd.denoisers.preconditioning import edm
from epd.denoisers.protocol import Model
from epd.denoisers.rows import NUMBERS, RowLimited, limit_rows, rows_that_fit, samples_together


@dataclass
class Network:
    """A network that depends on its sample's condition and remembers how many rows its calls had."""

    calls: list[int] = field(default_factory=list)

    def __call__(self, x: Tensor, timestep: Tensor, conditions: Rows) -> Tensor:
        self.calls.append(len(x))
        level = timestep.reshape(-1, 1, 1, 1).to(x.dtype)
        return torch.sin(x + level) * conditions["class_labels"].reshape(-1, 1, 1, 1).to(x.dtype)


def model_of(network: Network) -> NetworkDenoiser:
    """Sample `seed` has the condition 1 + seed mod 7; float64, so that splits agree to rounding of it."""
    return NetworkDenoiser(
        network, edm(), (1, 2, 2), 0.02, 80.0, dtype=torch.float64, null={"class_labels": torch.tensor([0])},
        seed_rows=lambda seeds: torch.tensor([1 + seed % 7 for seed in seeds]),
    )  # fmt: skip


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 7, 9, 10, 100])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_split_solve_is_the_whole_one(limit: int, guidance: float) -> None:
    """Five samples, fans of two, K = 2 and the anchor in one call (3 rows a sample) among them."""
    table, noise, seeds = full_table([2, 1, 2, 1]), normal(5, 1, 2, 2), [3, 1, 4, 1, 5]
    network = Network()
    whole = replace(model_of(network), guidance=guidance)
    expected = epd.solve(table.rule(), whole.for_seeds(seeds), noise, table.sigmas)
    network.calls.clear()
    limited = limit_rows(whole, limit)
    found = epd.solve(table.rule(), limited.for_seeds(seeds), noise, table.sigmas)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert max(network.calls) <= limit * (1 if guidance == 1.0 else 2)
    assert max(network.calls) >= min(limit, 5)  # and no smaller than it must be


def test_sigma_may_be_one_for_all_or_one_a_row() -> None:
    model, x, seeds = model_of(Network()), normal(6, 1, 2, 2), [0, 1, 2]
    split = limit_rows(model, 2).for_seeds(seeds)
    for sigma in (torch.tensor(0.7).double(), torch.linspace(0.1, 2, 6).double()):
        torch.testing.assert_close(split(x, sigma), model.for_seeds(seeds)(x, sigma), rtol=1e-12, atol=1e-12)
        unbound = limit_rows(toy_mixture(), 4)
        torch.testing.assert_close(unbound(x, sigma), toy_mixture()(x, sigma), rtol=1e-12, atol=1e-12)


def test_rows_that_are_no_multiple_of_the_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="5 rows cannot be served by 3"):
        limit_rows(model_of(Network()), 2).for_seeds([0, 1, 2])(normal(5, 1, 2, 2), torch.tensor(1.0))


def test_gradients_pass_through_a_split() -> None:
    model, sigma, grads = model_of(Network()), torch.tensor(0.7).double(), []
    for denoiser in (model.for_seeds([0, 1]), limit_rows(model, 1).for_seeds([0, 1])):
        x = normal(4, 1, 2, 2).requires_grad_()
        denoiser(x, sigma).square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_pictures_are_decoded_a_few_at_a_time() -> None:
    seen: list[int] = []

    def picture(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.clamp(0, 1)

    x = normal(7, 1, 2, 2)
    model = replace(model_of(Network()), picture=picture)
    assert torch.equal(limit_rows(model, 3).decode(x), x.clamp(0, 1)) and seen == [3, 3, 1]
    seen.clear()
    large = replace(model, shape=(4, 128, 128))
    limit_rows(large).decode(torch.zeros(2, 4, 128, 128))
    assert seen == [1, 1]


def test_a_limited_model_is_the_model_in_all_else() -> None:
    whole = digits(2.0)
    model: Model = limit_rows(whole, 8)
    for name in ("name", "path", "shape", "sigma_min", "sigma_max", "guidance", "device"):
        assert getattr(model, name) == getattr(whole, name)
    assert model.alphas_cumprod is whole.alphas_cumprod
    again = limit_rows(model)
    assert again is model and limit_rows(model, 3).fixed == 3 and limit_rows(model, 3).model is whole
    with pytest.raises(ValueError, match="rows = 0: .* at least 1"):
        limit_rows(whole, 0)


def test_the_automatic_limit_on_a_processor_falls_with_the_size_of_a_sample() -> None:
    assert limit_rows(digits()).rows() == NUMBERS // 64
    huge = replace(model_of(Network()), shape=(16, 2048, 2048))
    assert limit_rows(huge).rows() == limit_rows(huge).rows(gradients=True) == 1
    assert [samples_together(s, 512) for s in ((1, 8, 8), (4, 64, 64), (16, 128, 128), (16, 4096, 4096))] == [
        512, 256, 16, 1,
    ]  # fmt: skip


class Accelerator:
    """torch.cuda's memory counters for a device where a row needs `row` bytes, with gradients four times as many."""

    def __init__(self, row: int, free: int, kept: int) -> None:
        self.row, self.free, self.kept, self.peak, self.calls = row, free, kept, 0, 0

    def mem_get_info(self, device: str) -> tuple[int, int]:
        return self.free, 10 * self.free

    def memory_reserved(self, device: str) -> int:
        return 2 * self.kept

    def memory_allocated(self, device: str) -> int:
        return self.kept

    def max_memory_allocated(self, device: str) -> int:
        return self.peak

    def reset_peak_memory_stats(self, device: str) -> None:
        self.peak = self.kept

    def synchronize(self, device: str) -> None: ...

    def call(self, x: Tensor) -> None:
        self.calls += 1
        loads = 10**9 if self.calls == 1 else 0  # the first call loads what stays
        self.peak = max(self.peak, self.kept + loads + self.row * len(x) * (4 if torch.is_grad_enabled() else 1))


def test_the_automatic_limit_on_an_accelerator_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 bytes a row, 70,000 free and 10,000 cached: half of them are 40 rows, and 10 where gradients are kept."""
    accelerator = Accelerator(1000, 70_000, 10_000)
    monkeypatch.setattr(torch, "cuda", accelerator)
    monkeypatch.setattr(row_cost, "unit_noise", lambda seeds, shape, dtype, device: torch.zeros(len(seeds), *shape))

    class Placed(RowLimited):
        """The mixture, as if it were on the accelerator."""

        device = "cuda:0"  # type: ignore[assignment]

        def for_seeds(self, seeds: Sequence[int]) -> epd.Denoiser:
            def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
                accelerator.call(x)
                return self.model(x, sigma)

            return denoiser

    limited = RowLimited(Placed(toy_mixture()))
    assert limited.rows() == 32 and accelerator.calls == 2
    assert limited.rows(gradients=True) == 8 and accelerator.calls == 4
    assert limited.rows() == 32 and accelerator.calls == 4  # measured once
    assert limit_rows(limited, 3).rows() == 3 and accelerator.calls == 4


@pytest.mark.parametrize(("row", "free", "expected"), [(1, 0, 1), (0, 100, 32), (10**12, 10**9, 1), (100, 1600, 8)])
def test_rows_that_fit(row: int, free: int, expected: int) -> None:
    assert rows_that_fit(row, free) == expected
