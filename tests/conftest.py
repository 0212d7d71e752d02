"""What every test runs under: no network, one thread, the same examples each time, our own warnings as errors."""

from __future__ import annotations

import os

# Before anything imports them: threads and offline mode are read once, at import.
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import gc
import ipaddress
import socket
import warnings
from collections.abc import Callable, Generator, Iterator
from typing import Any

import hypothesis
import pytest
import torch
from helpers.command import cache, quiet_afterwards, run, saved  # noqa: F401 - fixtures of every test that runs the command

torch.set_num_threads(1)
# No deadline: the machine may be busy. Derandomised and without a database: the same examples everywhere.
hypothesis.settings.register_profile("epd", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("epd")


def fused_attention_works() -> bool:
    """In bfloat16 torch takes instructions for it that the processor has and ATEN_CPU_CAPABILITY=default forbids."""
    query = torch.zeros(2, 2, 64, 16, dtype=torch.bfloat16)
    try:
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    except RuntimeError:
        return False
    return True


if not fused_attention_works():
    torch.backends.cuda.enable_flash_sdp(False)  # the CPU's, too

THIRD_PARTY = "accelerate|diffusers|google|huggingface_hub|matplotlib|peft|sklearn|tensorboard|torch|transformers"
AGEING = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


def ignore_third_party() -> None:
    """Other people's deprecations, raised in their own modules, are not errors of ours."""
    for category in AGEING:
        warnings.filterwarnings("ignore", category=category, module=rf"({THIRD_PARTY})(\.|$)")


# Hooks, not ini lines: `-W error` on the command line outranks ini lines, and what is added inside pytest's own
# catch_warnings, as here, outranks both and ends with it.
@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    ignore_third_party()
    gc.disable()  # nothing that modules hold is garbage, and there are half a million of such things
    try:
        return (yield)
    finally:
        gc.freeze()  # nor are they later: collections look at what tests make
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    ignore_third_party()
    return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


def refuse_network(target: object) -> None:
    """Fails the test unless the address or host is this machine (gloo, multiprocessing and TensorBoard talk to it)."""
    host = target[0] if isinstance(target, tuple) and target else target
    name = host.decode() if isinstance(host, bytes) else str(host)
    if name in ("localhost", "None", ""):
        return
    try:
        local = ipaddress.ip_address(name).is_loopback or ipaddress.ip_address(name).is_unspecified
    except ValueError:
        local = False
    if not local:
        # Not an Exception: libraries swallow those and try again.
        pytest.fail(f"a test reached for the network: {target!r}")


def _guarded(original: Callable[..., Any], at: int) -> Callable[..., Any]:
    def guard(*args: Any) -> Any:  # noqa: ANN401 - stands in for socket methods
        is_unix = isinstance(args[0], socket.socket) and args[0].family == socket.AF_UNIX
        if not is_unix:
            refuse_network(args[at])
        return original(*args)

    return guard


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Every attempt to look up or to reach another machine fails the test that makes it."""
    with pytest.MonkeyPatch.context() as patch:
        for method, at in (("connect", 1), ("connect_ex", 1), ("sendto", -1)):
            patch.setattr(socket.socket, method, _guarded(getattr(socket.socket, method), at))
        lookup = socket.getaddrinfo

        def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - stands in for socket's
            refuse_network(host)
            return lookup(host, *args, **options)

        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield
