"""Large models: no network call, Jacobian or block is larger than it may be, and the numbers stay the same."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers.counting import Counting, counting
from helpers.toy_models import toy_config, toy_mixture
from torch import Tensor

from epd import GaussianMixture
from epd.denoisers import rows
from epd.denoisers.live_memory import measured
from epd.denoisers.noise import unit_noise
from epd.denoisers.protocol import Denoiser
from epd.denoisers.rows import limit_rows
from epd.distill import gauss_newton, portions
from epd.distill.config import DistillConfig
from epd.distill.families import structure
from epd.distill.gauss_newton import Normal, normal_equations
from epd.distill.initial import initial_table
from epd.distill.objective import Chunk, end_residual, mean_square
from epd.distill.parameters import Parameters
from epd.distill.plan import make_plan
from epd.distill.teacher import POOL_SEEDS, PROOF, VALIDATION_SEEDS, Teacher, block_size
from epd.distill.train import distill
from epd.distill.update import Update
from epd.solvers.exact import converged

EPS = 1e-3  # differences of solves in batches of another size: their rounding is divided by it
SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EPD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def problem(samples: int, shape: tuple[int, ...] = SHAPE) -> tuple[Parameters, list[Chunk]]:
    """A table's parameters, and one chunk a sample."""
    model, config = counting(shape), toy_config(calls=3)
    table = initial_table(config, model)
    noise = unit_noise(range(samples), shape, torch.float64)
    end = converged(model, noise, table.sigmas[[0, -1]], 1e-4, 1e-4)[1:]
    chunks = [Chunk(model, noise[i : i + 1].clone(), end[:, i : i + 1].clone()) for i in range(samples)]
    return Parameters.of(table, structure(config, "ve").learn), chunks


def together(chunks: Sequence[Chunk]) -> Chunk:
    return Chunk(chunks[0].denoiser, torch.cat([c.noise for c in chunks]), torch.cat([c.states for c in chunks], 1))


def dense(parameters: Parameters, chunk: Chunk) -> Normal:
    """The formula, with the whole Jacobian at once."""
    theta = parameters.start

    def residual(vector: Tensor) -> Tensor:
        return end_residual()(parameters.coefficients(vector), chunk.denoiser, chunk)

    base = residual(theta)
    jacobian = torch.stack([(residual(theta + EPS * e) - base) / EPS for e in torch.eye(len(theta)).double()], 1)
    return Normal(jacobian.T @ jacobian / len(base), jacobian.T @ base / len(base), base.square().mean())


def test_normal_equations_in_blocks_are_the_dense_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauss_newton, "STRETCH", 23)  # no divisor of a sample's 64 residuals
    parameters, chunks = problem(6)
    expected = dense(parameters, together(chunks))
    uneven = [together(chunks[:3]), together(chunks[3:4]), together(chunks[4:])]
    for blocks in ([together(chunks)], uneven, chunks):
        with torch.no_grad():
            found = normal_equations(parameters, parameters.start, blocks, end_residual(), EPS)
        for one, other in ((found.matrix, expected.matrix), (found.gradient, expected.gradient)):
            assert float((one - other).norm() / other.norm()) < 1e-10
        assert abs(float(found.loss / expected.loss) - 1) < 1e-12


def test_the_jacobian_does_not_grow_with_the_samples() -> None:
    """One block's columns are the largest thing there is, and what lives together is the same for 2 and 16 samples."""
    parameters, chunks = problem(16)
    count = len(parameters.start)

    def work(samples: int) -> Normal:
        return normal_equations(parameters, parameters.start, iter(chunks[:samples]), end_residual(), EPS)

    few, many = (measured(lambda samples=samples: work(samples)) for samples in (2, 16))
    assert many.largest == few.largest == 8 * count * 64
    assert many.peak <= 1.02 * few.peak
    whole = measured(lambda: normal_equations(parameters, parameters.start, [together(chunks)], end_residual(), EPS))
    assert whole.largest == 8 * count * 64 * 16  # what the measure is for
    assert many.peak < whole.peak / 5


def test_the_loss_of_blocks_is_the_loss_of_all() -> None:
    parameters, chunks = problem(5)
    c = parameters.coefficients(parameters.start)
    blocks = [together(chunks[:3]), together(chunks[3:])]
    expected = end_residual()(c, chunks[0].denoiser, together(chunks)).square().mean()
    assert float(mean_square(end_residual(), c, blocks)) == pytest.approx(float(expected), rel=1e-12)


def last(config: DistillConfig, model: GaussianMixture | rows.RowLimited) -> Update:
    return list(distill(model, make_plan(model, config)))[-1]


@pytest.mark.parametrize("objective", ["end", "steps", "both"])
@pytest.mark.parametrize("limit", [1, 5, 20])
def test_adam_within_a_row_limit_learns_the_same(objective: str, limit: int) -> None:
    """Limits of less than one call of a sample, of a few samples' calls recomputed, of two samples' trajectories."""
    config = toy_config(
        family="epd", calls=5, optimizer="adam", objective=objective, iterations=2, screening=1, batch=8, pool=8,
        accumulate=1, validation=6, validate_every=1,
    )  # fmt: skip
    whole, model = last(config, toy_mixture()), counting()
    found = last(config, limit_rows(model, limit))
    assert max(model.calls) == min(limit, 12)  # six held-out samples' fans are the largest call
    torch.testing.assert_close(found.state.vector, whole.state.vector, rtol=1e-7, atol=1e-8)
    assert found.state.best_rmse == pytest.approx(whole.state.best_rmse, rel=1e-6)


@pytest.mark.parametrize("limit", [1, 5])
def test_gauss_newton_within_a_row_limit_learns_the_same(limit: int) -> None:
    config = toy_config(iterations=2, screening=1, batch=16, pool=16, accumulate=2, validation=6)
    whole, model = last(config, toy_mixture()), counting()
    found = last(config, limit_rows(model, limit))
    assert max(model.calls) == limit
    torch.testing.assert_close(found.state.vector, whole.state.vector, rtol=1e-4, atol=1e-5)  # of differences


class Remembered(Counting):
    """The toy mixture with an activation of a row for each row, as a network would keep it for the backward pass."""

    live = most = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        activation = x.clone()
        if activation.requires_grad:
            self.live += len(x)
            self.most = max(self.most, self.live)
            weakref.finalize(activation, self.freed, len(x))
        return super().__call__(x, sigma) + 0 * activation.sin()

    def freed(self, count: int) -> None:
        self.live -= count


@pytest.mark.parametrize(
    ("objective", "limit", "expected"),
    [("end", 1000, 112), ("end", 31, 28), ("end", 15, 14), ("end", 10, 8), ("end", 3, 3), ("end", 1, 1),
     ("steps", 31, 24), ("both", 31, 26), ("both", 29, 28)],
)  # fmt: skip
def test_adam_keeps_the_activations_of_no_more_rows_than_the_limit(objective: str, limit: int, expected: int) -> None:
    """Fifteen rows a sample: eight samples' trajectories, two's, one's, or the recomputed ones of a single call.

    An anchor that no node has moved yet keeps none: the first, and with per-step objectives all three. Both objectives
    together are two trajectories of a sample.
    """
    model = Remembered(torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0)), 0.5, sigma_min=0.02,
                       sigma_max=20.0, name="toy")  # fmt: skip
    model.calls = []
    config = toy_config(family="epd", calls=6, points=4, optimizer="adam", iterations=2, screening=1, batch=8, pool=8,
                        accumulate=1, validation=6, afs=False, learn=("nodes",), objective=objective)  # fmt: skip
    plan = make_plan(model, config)
    assert plan.tables[0].nfe == 15
    model.most = 0  # of the two rows that proved the gradients
    list(distill(limit_rows(model, limit), plan))
    assert model.most == expected and model.live == 0


def test_a_sample_whose_calls_are_more_rows_than_the_limit_is_recomputed() -> None:
    plan = make_plan(toy_mixture(), toy_config(family="epd", calls=5, optimizer="adam", batch=128, accumulate=1))
    nfe = plan.tables[0].nfe
    exact = portions.portions(limit_rows(toy_mixture(), nfe), plan)
    assert (exact.train, exact.recompute) == (1, False)
    assert portions.portions(limit_rows(toy_mixture(), nfe - 1), plan) == portions.Portions(128, 128, True)
    assert portions.portions(limit_rows(toy_mixture(), 10 * nfe), plan).train == 10
    assert portions.portions(limit_rows(toy_mixture()), plan) == portions.Portions(128, 128, False)


def sized(shape: tuple[int, ...]) -> GaussianMixture:
    return GaussianMixture(torch.zeros(1, *shape), 0.5, sigma_min=0.02, sigma_max=20.0, name="toy")


@pytest.mark.parametrize(
    ("shape", "train", "measure"),
    [((1, 8, 8), 256, 256), ((3, 32, 32), 85, 256), ((16, 128, 128), 1, 16), ((16, 512, 512), 1, 1)],
)
def test_the_jacobian_of_large_samples_is_formed_of_few_at_a_time(
    shape: tuple[int, ...], train: int, measure: int
) -> None:
    # With its points and schedule given, a plan asks the model nothing: one answer here is up to 34 MB.
    plan = make_plan(sized(shape), DistillConfig(optimizer="gauss-newton", points=1, schedule="polynomial"))
    assert portions.portions(limit_rows(sized(shape)), plan) == portions.Portions(train, measure, False)


def teacher_of(cache: Path, **changes: object) -> tuple[Teacher, Counting]:
    model = counting()
    sigmas = torch.tensor([20.0, 0.02], dtype=torch.float64)
    return Teacher(limit_rows(model, 7), toy_config(teacher="heun", **changes), sigmas, cache), model


def solved(model: Counting, blocks: int) -> int:
    """Trajectories: Heun makes 2 x 8 calls of each, and the proof of a block is a few more."""
    count, rest = divmod(sum(model.calls) - PROOF * blocks, 16)
    assert rest == 0
    return count


def test_the_teacher_solves_no_more_than_the_pool(cache: Path) -> None:
    teacher, model = teacher_of(cache, pool=16, validation=5, batch=16, accumulate=1)
    for first, count in ((POOL_SEEDS, 16), (VALIDATION_SEEDS, 5)):
        teacher.prepare(first, count)
    assert solved(model, 2) == 16 + 5 and max(model.calls) == 7
    states = teacher.states([POOL_SEEDS + 3, VALIDATION_SEEDS + 4, POOL_SEEDS + 3])
    assert states.shape == (1, 3, 1, 2, 2) and torch.equal(states[:, 0], states[:, 2])
    assert not torch.equal(states[:, 0], states[:, 1])


def test_a_larger_pool_uses_whole_blocks_again_and_never_a_cut_one(cache: Path) -> None:
    block = block_size(4)
    small, _ = teacher_of(cache, pool=block + 10)
    small.prepare(POOL_SEEDS, block + 10)
    whole, cut = sorted(path.name for path in cache.rglob("*.safetensors"))
    assert whole.startswith(f"{POOL_SEEDS}-") and cut.startswith(f"{POOL_SEEDS + block}-10-")
    large, model = teacher_of(cache, pool=2 * block)
    large.prepare(POOL_SEEDS, 2 * block)
    assert solved(model, 2) == block  # the whole block is proven by a few evaluations, the other solved
    fresh, _ = teacher_of(cache / "fresh", pool=2 * block)
    seeds = range(POOL_SEEDS, POOL_SEEDS + 2 * block)
    torch.testing.assert_close(large.states(seeds), fresh.states(seeds), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("numbers", "expected"), [(4, 256), (64, 256), (256, 64), (2**16, 64), (2**18, 16), (2**25, 1)]
)
def test_blocks_of_large_samples_are_small(numbers: int, expected: int) -> None:
    assert block_size(numbers) == expected


def test_denoisers_of_parts_are_bound_to_their_own_samples() -> None:
    seen: list[tuple[int, ...]] = []

    def bind(seeds: Sequence[int]) -> Denoiser:
        seen.append(tuple(seeds))
        return toy_mixture()

    split = limit_rows(toy_mixture(), 4).split(range(10, 15), bind)
    for _ in range(2):
        split(torch.zeros(10, 1, 2, 2), torch.tensor(1.0).double())
    assert seen == [(10, 11), (12, 13), (14,)]
