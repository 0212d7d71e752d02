"""Numbers at the ends of a floating type: gradients of half precision, starts that overflow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.toy_models import toy_config, toy_mixture
from torch import Tensor, nn

from epd import trajectory
from epd.denoisers.networks import NetworkDenoiser
from epd.denoisers.noise import unit_noise
from epd.denoisers.preconditioning import edm
from epd.distill import adam, train
from epd.distill.config import ResolvedConfig
from epd.distill.objective import Chunk, Residual, end_residual
from epd.distill.parameters import Parameters
from epd.distill.plan import Plan, make_plan
from epd.distill.state import Problem, Stepped, TrainerState
from epd.distill.train import distill
from epd.distill.update import Update
from epd.runs.processes import Workers
from epd.solvers.parallel import parallel

LARGE = (16, 128, 128)  # the latents of a picture of 1024 x 1024 pixels


def network(dtype: torch.dtype, convolved: bool) -> NetworkDenoiser:
    """A network of large latents; with a convolution, which autocast makes half precision."""
    mix = nn.Conv2d(16, 16, 1, bias=False).requires_grad_(False)
    with torch.no_grad():
        mix.weight.copy_(0.2 * torch.randn(mix.weight.shape, generator=torch.Generator().manual_seed(0)))

    def call(x: Tensor, timestep: Tensor, rows: object) -> Tensor:
        inner = mix(x) if convolved else x.roll(1, 1)
        return torch.tanh(inner * (1 + timestep.to(x.dtype).reshape(-1, 1, 1, 1)))

    return NetworkDenoiser(call, edm(0.5), LARGE, 0.01, 20.0, dtype=dtype, name="large")


@dataclasses.dataclass(frozen=True)
class OneBatch:
    """What an optimiser sees of a trainer."""

    plan: Plan
    workers: Workers = Workers()
    residual: Residual = end_residual()

    @property
    def config(self) -> ResolvedConfig:
        return self.plan.config

    @property
    def iterations(self) -> int:
        return self.plan.iterations

    def parameters(self, state: TrainerState) -> Parameters:
        return Parameters.of(self.plan.tables[0], self.plan.learn)


def state_of(problem: OneBatch, scale: float, iteration: int = 0) -> TrainerState:
    vector = problem.parameters(None).start  # type: ignore[arg-type] - one start
    none = torch.zeros(2, len(vector), dtype=torch.float64)
    return TrainerState(iteration, 0, 0, vector, vector, math.inf, 0, 0, 0.0, none, scale)


def gradient(objective: str, scale: float, dtype: torch.dtype, precision: str, convolved: bool) -> Tensor:
    """At a loss scale, where the student is .0003 away from its teacher."""
    student = network(dtype, convolved)
    config = toy_config(
        family="epd",
        calls=4,
        optimizer="adam",
        schedule="polynomial",
        learn=("nodes", "weights"),
        objective=objective,
        batch=1,
        accumulate=1,
    )
    problem = OneBatch(make_plan(student, config))
    c = problem.plan.tables[0].coefficients()
    noise, off = unit_noise([0, 1], LARGE).split(1)

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16, enabled=precision == "fp16"):
            return student(x, sigma).to(x.dtype)

    states = torch.stack(list(trajectory(parallel(c), denoiser, noise, c.sigmas))[1:]) + 3e-4 * off
    row, kept = adam.scaled_gradient(problem, state_of(problem, scale), 1, lambda i: [Chunk(denoiser, noise, states)])
    assert kept == scale
    return row[:-1]


@pytest.mark.parametrize("objective", ["end", "steps"])
@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float16, "no"), (torch.float32, "fp16")], ids=["network", "autocast"]
)
def test_fp16_gradients_of_large_pictures_do_not_underflow(dtype: torch.dtype, precision: str, objective: str) -> None:
    convolved = precision == "fp16"
    scale = adam.first_scale(math.prod(LARGE))
    assert scale == 2.0**18
    truth = gradient(objective, 1.0, torch.float32, "no", convolved)
    scaled, unscaled = (gradient(objective, factor, dtype, precision, convolved) for factor in (scale, 1.0))
    assert float((scaled - truth).norm() / truth.norm()) < 0.02
    assert float((unscaled - truth).norm() / truth.norm()) > 0.1, "nothing underflows: the test proves nothing"


def test_scales_of_losses_change_no_bit_of_single_precision() -> None:
    one, two = (gradient("end", scale, torch.float32, "no", True) for scale in (1.0, 2.0**18))
    assert torch.equal(one, two)


class Overflowing(Workers):
    """Gradients that are finite up to a loss scale only."""

    def __init__(self, limit: float, loss: float = 1.0) -> None:
        super().__init__()
        object.__setattr__(self, "limit", limit)
        object.__setattr__(self, "loss", loss)
        object.__setattr__(self, "scales", [])

    def mean(self, parts: int, size: int, work: Callable[[int], Tensor]) -> Tensor:
        scale: float = work.args[0]  # type: ignore[attr-defined]
        self.scales.append(scale)  # type: ignore[attr-defined]
        entry = 1.0 if scale <= self.limit else math.inf  # type: ignore[attr-defined]
        return torch.tensor([entry] * (size - 1) + [self.loss], dtype=torch.float64)  # type: ignore[attr-defined]


def scales(limit: float, scale: float, iteration: int, loss: float = 1.0) -> tuple[list[float], float]:
    """Which loss scales one update tries, and which it keeps."""
    workers = Overflowing(limit, loss)
    problem = OneBatch(make_plan(toy_mixture(), toy_config(optimizer="adam", schedule="polynomial")), workers)
    state = state_of(problem, scale, iteration)
    kept = adam.update(problem, state, 1, lambda i: pytest.fail("no batch is needed"), exploring=False).scale
    return workers.scales, kept  # type: ignore[attr-defined]


def test_a_loss_scale_falls_until_the_gradient_is_finite_and_rises_now_and_then() -> None:
    assert scales(2.0**10, 2.0**12, 7) == ([2.0**12, 2.0**11, 2.0**10], 2.0**10)
    assert scales(2.0**30, 2.0**12, 2 * adam.GROWTH) == ([2.0**13], 2.0**13)
    assert scales(2.0**12, 2.0**12, adam.GROWTH) == ([2.0**13, 2.0**12], 2.0**12)
    assert scales(math.inf, adam.LARGEST_SCALE, adam.GROWTH) == ([adam.LARGEST_SCALE], adam.LARGEST_SCALE)
    with pytest.raises(FloatingPointError, match="the gradient of a batch is not finite: lower lr"):
        scales(0.0, 4.0, 7)
    with pytest.raises(FloatingPointError, match="the loss of a batch is not finite"):
        scales(math.inf, 4.0, 7, math.nan)


Step = Callable[..., Stepped]


def failing(step: Step, fails: Callable[[TrainerState], bool]) -> Step:
    """An optimiser that overflows at some states."""

    def update(problem: Problem, state: TrainerState, *rest: object) -> Stepped:
        if fails(state):
            raise FloatingPointError("the state is not finite after step 1")
        return step(problem, state, *rest)

    return update


def run(cache: Path, optimizer: str, state: TrainerState | None = None, **changes: object) -> list[Update]:
    model = toy_mixture()
    plan = make_plan(model, toy_config(family="epd", optimizer=optimizer, iterations=4, screening=3, **changes))
    return list(distill(model, plan, state, cache=cache))


@pytest.fixture(params=["soap", "adam", "gauss-newton"])
def optimizer(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def fail(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[TrainerState], bool]], None]:
    module = train.OPTIMIZERS[optimizer]
    return lambda fails: monkeypatch.setattr(module, "update", failing(module.update, fails))


Fail = Callable[[Callable[[TrainerState], bool]], None]


def test_a_start_that_overflows_is_lost_and_the_others_go_on(
    optimizer: str, fail: Fail, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = {u.iteration: u.state.vector for u in run(tmp_path, optimizer)}
    fail(lambda state: state.start == 1 and state.iteration == 4)
    updates = run(tmp_path, optimizer)
    assert "start 2 of 4 is lost: the state is not finite after step 1" in caplog.text
    assert [u.iteration for u in updates] == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    lost = updates[4]
    assert math.isinf(lost.loss) and not lost.accepted and lost.table.num_steps == 2
    for update in updates:
        if update.iteration not in (6, 13, 14, 15, 16):
            assert torch.equal(update.state.vector, whole[update.iteration])
    assert updates[-1].state.best_start != 1
    for update in updates[3:6]:
        assert torch.equal(run(tmp_path, optimizer, update.state)[-1].state.vector, updates[-1].state.vector)


def test_an_overflow_after_screening_ends_the_run_with_its_best(
    optimizer: str, fail: Fail, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fail(lambda state: state.iteration == 14)
    *_, before, last = run(tmp_path, optimizer)
    assert "training ends at update 15 with the best numbers so far" in caplog.text
    assert before.iteration == 14 and last.iteration == last.total == 16
    assert torch.equal(last.state.vector, before.state.best) and last.state.best_rmse == before.state.best_rmse
    assert last.table.provenance.metrics == {"validation_rmse": before.state.best_rmse}
    assert not run(tmp_path, optimizer, last.state)


@pytest.mark.parametrize("schedule", [None, "polynomial"], ids=["several starts", "one start"])
def test_when_all_starts_overflow_the_error_says_so(
    optimizer: str, fail: Fail, schedule: str | None, tmp_path: Path
) -> None:
    fail(lambda state: True)
    count = 4 if schedule is None else 1
    with pytest.raises(FloatingPointError, match=f"all {count} starts are lost, the last by this: the state is not"):
        run(tmp_path, optimizer, schedule=schedule)


def test_no_step_is_so_long_that_noise_levels_meet(tmp_path: Path) -> None:
    """A learning rate that no weight survives: the levels still decrease, and the start is what is left."""
    model = toy_mixture()
    config = toy_config(calls=6, optimizer="adam", lr=1e12, screening=3, iterations=3, validate_every=1)
    updates = list(distill(model, make_plan(model, config), cache=tmp_path))
    assert max(u.validation or 0.0 for u in updates) > 1e9
    assert all((u.table.sigmas[1:] < u.table.sigmas[:-1]).all() for u in updates)
    assert updates[-1].state.best_rmse < 0.2
