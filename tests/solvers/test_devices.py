"""The loop on an accelerator, without one: fake tensors refuse mixed devices and every value that is read back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from helpers.fake_devices import FakeDevices, Unlinked
from helpers.recording import elementwise
from helpers.tables import FAMILIES, SIGMAS
from torch import Tensor

import epd
from epd.denoisers.networks import NetworkDenoiser, Rows
from epd.denoisers.preconditioning import edm, epsilon, flow, v_prediction
from epd.denoisers.protocol import Path
from epd.denoisers.timesteps import Timesteps, linear_beta
from epd.pipelines.kdiffusion import sample_epd
from epd.solvers.answers import MakeAnswer, batched, serial
from epd.solvers.auto import auto
from epd.solvers.capture import capture
from epd.solvers.graphs import EagerGraph, NoHostWork, NotCapturable
from epd.solvers.parallel import Coefficients, parallel

rules = epd.rules
RULES: dict[str, Callable[[], epd.Rule]] = {
    "euler": rules.euler,
    "euler, AFS": lambda: rules.euler(afs=True),
    "heun": rules.heun,
    "dpm2": lambda: rules.dpm2(0.3),
    "ipndm": rules.ipndm,
    "ipndm, computed": lambda: rules.ipndm(4, "computed"),
    "dpmpp": lambda: rules.dpmpp(3, num_steps=4),
    "dpm": lambda: rules.dpmpp(3, predict_x0=False),
    "dpmpp, exact": lambda: rules.dpmpp(3, weights="exact"),
    **{name: functools.partial(table.rule) for name, table in FAMILIES.items()},
}
GRID = torch.tensor(SIGMAS, dtype=torch.float64)
TIMES = Timesteps(linear_beta(1000))
KINDS = {"edm": edm(), "epsilon": epsilon(TIMES), "v": v_prediction(TIMES), "flow": flow()}
DEVICES = ("cuda", "mps")
on_devices = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture
def fake() -> Iterator[None]:
    with FakeDevices(allow_non_fake_inputs=True), Unlinked():
        yield


def levels(device: str, samples: int | None = None) -> Tensor:
    """Noise levels on the device itself, where nobody may read them (MPS: float32)."""
    dtype = torch.float32 if device == "mps" else torch.float64
    return torch.empty(len(SIGMAS), *[] if samples is None else [samples], dtype=dtype, device=device)


def test_a_fake_device_shows_both_faults(fake: None) -> None:
    x = torch.empty(3, device="cuda")
    with pytest.raises(Exception, match="[Dd]evice"):
        torch.cat([x, torch.empty(3)])
    with pytest.raises(Exception, match="item|data|local_scalar|linked"):
        float(x.sum())
    with pytest.raises(AssertionError, match="float64 on MPS"):
        torch.empty(3, device="mps", dtype=torch.float64)


@on_devices
@pytest.mark.parametrize(
    ("name", "answer"), [*((name, batched) for name in RULES), *((name, serial) for name in FAMILIES)]
)  # points are answered one after another where there are several: in tables
def test_no_rule_waits_for_the_device_or_mixes_devices(name: str, answer: MakeAnswer, device: str, fake: None) -> None:
    noise = torch.empty(5, 2, 3, device=device)
    # A list is such a tensor before anything else happens; who answers sees but the levels on the device.
    for sigmas in (*[GRID] * (answer is batched), levels(device), levels(device, 5)):
        x = epd.solve(RULES[name](), elementwise, noise, sigmas, answer=answer, check=False)
        assert (x.device.type, x.dtype, x.shape) == (device, torch.float32, noise.shape)


def per_sample(c: Coefficients, device: str) -> Coefficients:
    """Five tables at once, on the device (MPS: beside the CPU's noise levels)."""
    home = "cpu" if device == "mps" else device
    names = ("nodes", "weights", "sigma_scale", "anchor_scale", "anchor", "memory", "lookahead")
    changes = {name: torch.empty(*getattr(c, name).shape, 5, dtype=torch.float64, device=home) for name in names}
    return Coefficients(c.sigmas.to(home), **changes, calls=c.calls, afs=c.afs, used=c.used)


@on_devices
@pytest.mark.parametrize("name", FAMILIES)
def test_no_table_of_every_sample_does_either(name: str, device: str, fake: None) -> None:
    rule = parallel(per_sample(FAMILIES[name].coefficients(), device))
    x = epd.solve(rule, elementwise, torch.empty(5, 2, 3, device=device), SIGMAS, check=False)
    assert x.device.type == device


@on_devices
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_no_network_denoiser_does_either(kind: str, guidance: float, device: str, fake: None) -> None:
    path: Path = "flow" if kind == "flow" else "ve"

    def network(x: Tensor, timestep: Tensor, rows: dict[str, Tensor]) -> Tensor:
        assert timestep.device == x.device == rows["class_labels"].device
        return x * timestep[:, None, None] + rows["class_labels"][:, None, None]

    null = {"class_labels": torch.empty(1, dtype=torch.long, device=device)}
    model = NetworkDenoiser(network, KINDS[kind], (2, 3), 0.1, 40.0, path, device=device, null=null)  # type: ignore[arg-type]
    bound = model.bind(torch.empty(5, dtype=torch.long), guidance)
    for family in ("epd", "one call, AFS"):
        x = epd.solve(FAMILIES[family].rule(), bound, torch.empty(5, 2, 3, device=device), SIGMAS, check=False)
        assert x.device.type == device


@pytest.mark.parametrize("name", RULES)
def test_every_rule_can_be_captured(name: str, fake: None, caplog: pytest.LogCaptureFixture) -> None:
    """Recording refuses what waits for the device, has no fixed shape, or copies to or from another device."""
    run = capture(
        RULES[name](), elementwise, (5, 2, 3), torch.float32, levels("cuda"), device="cuda", make_graph=EagerGraph
    )
    assert run.replays.kept == 1 and not caplog.records
    with torch.no_grad():
        x = run(torch.empty(5, 2, 3, device="cuda"))
    assert (x.device.type, x.dtype, x.shape) == ("cuda", torch.float32, (5, 2, 3))


@pytest.mark.parametrize(
    ("kind", "guidance", "whole"), [*zip(KINDS, (1.0, 2.0) * 2, (False, True, True, False), strict=True)]
)
def test_every_network_denoiser_can_be_captured(
    kind: str, guidance: float, whole: bool, fake: None, caplog: pytest.LogCaptureFixture
) -> None:
    def network(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        return x * timestep[:, None, None] + rows["class_labels"][:, None, None]

    labels = {"class_labels": torch.empty(5, device="cuda")}
    null = {"class_labels": torch.empty(1, device="cuda")}
    model = NetworkDenoiser(network, KINDS[kind], (2, 3), 0.1, 40.0, device="cuda", null=null)
    run = capture(
        FAMILIES["one call, AFS"].rule(), lambda c: model.bind(c, guidance), (5, 2, 3), torch.float32, SIGMAS, whole,
        labels, "cuda", make_graph=EagerGraph,
    )  # fmt: skip
    with torch.no_grad():
        assert run(torch.empty(5, 2, 3, device="cuda"), labels).device.type == "cuda"
    assert run.replays.kept == 1 and not caplog.records


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda x: x + torch.ones(()).to(x), "copies from cpu to cuda"),
        (lambda x: x + x.cpu().sum().to(x), "copies from cuda to cpu"),
        (lambda x: x if x.sum() > 0 else -x, "waits for the device"),
    ],
)
def test_what_no_graph_can_hold_is_named(wrong: Callable[[Tensor], Tensor], said: str, fake: None) -> None:
    x = torch.empty(3, device="cuda")
    with pytest.raises(NotCapturable, match=said), NoHostWork():
        wrong(x)


@pytest.mark.parametrize("wrong", [lambda x: x[x > 0], torch.nonzero, torch.unique, lambda x: x.masked_select(x > 0)])
def test_shapes_that_depend_on_values_are_named(wrong: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NotCapturable, match="shape depends on values"), NoHostWork():
        wrong(torch.ones(3))


@on_devices
def test_auto_keeps_to_its_choice_without_waiting(device: str, fake: None) -> None:
    answer, noise, table = auto(), torch.empty(5, 2, 3, device=device), FAMILIES["anchor and memory"]
    answer.choices[torch.Size((2, 5, 2, 3)), torch.float32, noise.device] = "serial"
    assert epd.solve(table.rule(), elementwise, noise, SIGMAS, answer, check=False).device.type == device


@on_devices
@pytest.mark.parametrize("name", FAMILIES)
def test_the_k_diffusion_sampler_does_not_either(name: str, device: str, fake: None) -> None:
    x = torch.empty(5, 2, 3, device=device)
    assert sample_epd(elementwise, x, disable=True, table=FAMILIES[name]).device.type == device


def test_solve_with_its_check_reads_back_once_and_at_the_end(fake: None) -> None:
    calls: list[int] = []

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(len(x))
        return elementwise(x, sigma)

    with pytest.raises(Exception, match="item|data|local_scalar"):
        epd.solve(rules.heun(), denoiser, torch.empty(5, 2, 3, device="cuda"), SIGMAS)
    assert len(calls) == 8
