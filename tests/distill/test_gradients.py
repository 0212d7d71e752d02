"""Models without true gradients: what is chosen for them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.toy_models import toy_config
from torch import Tensor

from epd import solve
from epd.denoisers.digits import digits, digits_exact
from epd.denoisers.networks import NetworkDenoiser, Rows
from epd.denoisers.noise import unit_noise
from epd.denoisers.preconditioning import edm
from epd.distill.plan import make_plan
from epd.distill.train import distill
from epd.solvers.exact import converged


def network(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
    """Not linear, and different at every noise level."""
    time = timestep.reshape(-1, 1, 1, 1).to(x.dtype)
    return torch.tanh(2 * x.roll(1, -1) + (0.5 + 2 * time) * x.roll(1, -2))


@torch.no_grad()
def under_no_grad(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
    return network(x, timestep, rows)


def detached(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
    return network(x, timestep, rows).detach()


def in_numpy(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
    return torch.from_numpy(network(x, timestep, rows).detach().numpy().copy())


def half_detached(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
    upper, lower = network(x, timestep, rows).chunk(2, -1)
    return torch.cat([upper, lower.detach()], -1)


def of_detached_times(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
    return network(x, timestep.detach(), rows)


BLIND = [under_no_grad, detached, in_numpy, half_detached, of_detached_times]
Call = Callable[[Tensor, Tensor, Rows], Tensor]


def model(call: Call) -> NetworkDenoiser:
    return NetworkDenoiser(call, edm(0.5), (1, 2, 4), 0.02, 20.0, dtype=torch.float64, name="blind")


@pytest.mark.parametrize("call", BLIND)
def test_auto_takes_gauss_newton_without_true_gradients_and_says_so(
    call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = toy_config(family="epd", calls=4, optimizer="auto", schedule="polynomial", iterations=4)
    sighted = make_plan(model(network), config)
    assert not sighted.config.gauss_newton and not caplog.text
    plan = make_plan(model(call), config)
    assert plan.config.gauss_newton and plan.config.validate_every == 1  # and what depends on the optimiser
    assert "gradients through blind are missing or wrong" in caplog.text and "Gauss-Newton" in caplog.text
    *_, last = distill(model(call), plan, cache=tmp_path)
    noise = unit_noise(range(100), (1, 2, 4), torch.float64)
    errors = []
    for table in (plan.tables[0], last.table):
        end = converged(model(call), noise, table.sigmas[[0, -1]], 1e-6, 1e-6)[-1]
        x = solve(table.rule(), model(call), noise, table.sigmas)
        errors.append(float((x - end).square().mean().sqrt()))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("call", BLIND)
def test_adam_is_refused_without_true_gradients(call: Call) -> None:
    with pytest.raises(ValueError, match="optimizer = 'adam', but gradients through blind .* use 'gauss-newton'"):
        make_plan(model(call), toy_config(optimizer="adam"))


@pytest.mark.parametrize("optimizer", ["auto", "adam"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "steps"}, "objective = 'steps' needs gradients, .* use objective = 'end', as Gauss-Newton"),
        ({"objective": "both"}, "objective = 'both' needs gradients, .* use objective = 'end', as Gauss-Newton"),
        ({"precision": "bf16"}, "precision = 'bf16' needs gradients, .* use precision = 'no', as Gauss-Newton"),
    ],
)
def test_what_needs_adam_is_refused_without_true_gradients(
    optimizer: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(model(detached), toy_config(optimizer=optimizer, **changes))


def test_gauss_newton_asks_for_no_gradient() -> None:
    def refuse(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        assert not torch.is_grad_enabled()
        return network(x, timestep, rows)

    assert make_plan(model(refuse), toy_config(optimizer="gauss-newton")).config.gauss_newton


HALF = [torch.bfloat16, torch.float16]


def large(dtype: torch.dtype, call: Call = network, **changes: object) -> NetworkDenoiser:
    """Too large for Adam by its size alone, and of a network in this dtype."""
    return replace(model(call), shape=(1, 65, 65), dtype=dtype, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", HALF)
def test_auto_takes_gradients_for_large_networks_in_half_precision_and_says_so(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    config = toy_config(family="epd", optimizer="auto", dtype="float32", schedule="polynomial")
    assert make_plan(large(torch.float32), config).config.gauss_newton and not caplog.text
    plan = make_plan(large(dtype), config)
    assert not plan.config.gauss_newton and plan.config.validate_every == 100  # and what depends on the optimiser
    assert "blind rounds too much for Gauss-Newton's differences: the optimiser is SOAP" in caplog.text


@pytest.mark.parametrize("dtype", HALF)
def test_gauss_newton_on_half_precision_is_warned_of(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    """Where it was asked for, and where nothing else is left, be the samples large or small."""
    config = toy_config(family="epd", optimizer="gauss-newton", dtype="float32", schedule="polynomial")
    auto = config.model_copy(update={"optimizer": "auto"})
    small = replace(large(dtype, under_no_grad), shape=(1, 8, 8))
    for blind, options in ((large(dtype), config), (large(dtype, under_no_grad), auto), (small, auto)):
        caplog.clear()
        assert make_plan(blind, options).config.gauss_newton
        assert "load the network in float32" in caplog.text


def test_float32_networks_are_rounded_for_differences_of_float64(caplog: pytest.LogCaptureFixture) -> None:
    """float64 states take steps of 1e-6, within which a float32 network rounds."""
    config = toy_config(family="epd", optimizer="gauss-newton", schedule="polynomial")
    make_plan(digits_exact(), config)
    assert not caplog.text
    make_plan(digits(), config)
    assert "load the network in float32" in caplog.text
