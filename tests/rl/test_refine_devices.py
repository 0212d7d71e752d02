"""Rollouts on an accelerator, without one: tables of every sample mix no devices and need no float64 on MPS."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from helpers.fake_devices import FakeDevices, Unlinked
from helpers.policies import TABLES, generator, moved
from torch import Tensor

from epd.denoisers.protocol import Denoiser
from epd.rl import closeness, task
from epd.rl.closeness import Closeness
from epd.rl.policy import Policy
from epd.rl.task import Draws, Rollout, Task

COUNT = 5
CASES = [("epd", "published"), ("anchor and memory", "ours"), ("one call, AFS", "ours"), ("dense, no fan", "ours")]


class OnDevice:
    """A model whose states have to be where it is."""

    name, path, shape = "toy", "ve", (1, 2, 2)
    sigma_min, sigma_max, guidance, alphas_cumprod = 0.1, 40.0, 1.0, None

    def __init__(self, device: str) -> None:
        self.device = device

    def for_seeds(self, seeds: Sequence[int]) -> Denoiser:
        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            assert x.device.type == self.device and x.dtype == torch.float32
            return x / 2

        return denoiser

    def decode(self, x: Tensor) -> Tensor:
        return x


def empty_noise(seeds: Sequence[int], shape: Sequence[int], dtype: torch.dtype, device: str) -> Tensor:
    return torch.empty(len(seeds), *shape, dtype=dtype, device=device)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No noise, which is drawn on the CPU."""
    monkeypatch.setattr(task, "unit_noise", empty_noise)


@pytest.mark.parametrize("device", ["cuda", "mps"])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_rollout_stays_on_its_device(name: str, kind: str, device: str, unread: None) -> None:
    c = moved(Policy(TABLES[name], kind)).sample(COUNT, generator()).coefficients()
    whole = Task(OnDevice(device), {"any": lambda rollout: torch.zeros(len(rollout.states))})  # type: ignore[arg-type]
    with FakeDevices(allow_non_fake_inputs=True), Unlinked():
        rollout = whole.roll_out(c, Draws((0,) * COUNT, (1,) * COUNT), torch.float32, check=False)
    assert rollout.states.device.type == device and rollout.states.dtype == torch.float32


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_end_points_are_solved_where_there_is_float64(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    homes: list[str] = []

    def one_call(denoiser: Denoiser, noise: Tensor, sigmas: Tensor, rtol: float, atol: float) -> Tensor:
        homes.append(noise.device.type)
        out = denoiser(noise, sigmas[0].to(noise.device))
        assert out.dtype == noise.dtype == torch.float64 and out.device == noise.device
        return out[None]

    monkeypatch.setattr(closeness, "unit_noise", empty_noise)
    monkeypatch.setattr(closeness, "converged", one_call)
    with FakeDevices(allow_non_fake_inputs=True), Unlinked():
        model = OnDevice(device)
        states = torch.empty(2, 1, 2, 2, device=device)
        scores = Closeness(model, 1e-3)(Rollout(model, Draws((0, 0), (1, 2)), ["", ""], states))  # type: ignore[arg-type]
    assert homes == ["cpu" if device == "mps" else device] and scores.device.type == "cpu"
