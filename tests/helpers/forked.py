"""Several gloo processes of this one: forked, so that they take a second and not ten."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable

import pytest
import torch._dynamo  # noqa: F401 - what each child would import anew: this by torch.optim
import torch.distributed
import torch.utils.tensorboard  # noqa: F401
import torchdiffeq  # noqa: F401
from accelerate import PartialState

PATIENCE = 240.0  # seconds until processes that wait for each other count as hanging


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _child(work: Callable[[], object], rank: int, count: int, port: int, pipe: int) -> None:
    """Runs `work` as process `rank` of `count` and writes what it returned, or its error, as JSON."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    PartialState._reset_state()
    try:
        answer: object = work()
    except BaseException as error:  # noqa: BLE001 - told to the parent
        answer = [type(error).__name__, str(error)]
    os.write(pipe, json.dumps(answer).encode())


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int, rank: int = 1) -> None:
    """Lets process `rank` kill itself at this call, from 1, of a method."""
    whole, calls = getattr(owner, name), 0

    def counted(*arguments: object, **more: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments, **more)

    monkeypatch.setattr(owner, name, counted)


def assert_lost(answers: list[object]) -> None:
    """The first of two processes said that the other one is gone."""
    first, second = answers
    assert second is None and isinstance(first, list) and first[0] == "ProcessError", answers
    assert first[1].startswith("process 0 of 2 has lost another one, which was killed") and "--resume" in first[1]


def in_processes(work: Callable[[], object], count: int = 2, patience: float = PATIENCE) -> list[object]:
    """What `work` returned in each of `count` processes, ready for JSON; [type, message] where it raised, None where
    it was killed.
    """
    port, children, pipes = _free_port(), [], []
    for rank in range(count):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                _child(work, rank, count, port, writing)
            finally:
                os._exit(0)
        os.close(writing)
        children.append(pid)
        pipes.append(reading)
    try:
        return _answers(pipes, patience)
    finally:
        for pid, reading in zip(children, pipes, strict=True):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(reading)


def _answers(pipes: list[int], patience: float) -> list[object]:
    said, until = dict.fromkeys(pipes, b""), time.monotonic() + patience
    waiting = set(pipes)
    while waiting:
        ready, _, _ = select.select(waiting, [], [], max(until - time.monotonic(), 0))
        assert ready, f"{len(waiting)} of {len(pipes)} processes wait for another"
        for pipe in ready:
            part = os.read(pipe, 65536)
            said[pipe] += part
            if not part:
                waiting.discard(pipe)
    return [json.loads(said[pipe]) if said[pipe] else None for pipe in pipes]
