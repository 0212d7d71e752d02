"""Several processes that work as one: means in one order, failures in all of them at once."""

from __future__ import annotations

import pytest
import torch
from helpers.forked import in_processes
from torch import Tensor

from epd.runs.processes import Workers, own_device


def test_means_are_taken_in_one_order() -> None:
    values = torch.tensor([1e16, 1.0, -1e16, 1.0], dtype=torch.float64)
    expected = (((values[0] + values[1]) + values[2]) + values[3]) / 4
    assert torch.equal(Workers().mean(4, 1, lambda i: values[i].reshape(1)), expected.reshape(1))


def failing(failures: dict[int, Exception]) -> list[object]:
    """What two processes make of a mean whose parts fail, and of the next mean; parts 0, 2 are of the first process."""

    def part(i: int) -> Tensor:
        if i in failures:
            raise failures[i]
        return torch.tensor([float(i)])

    def work() -> object:
        workers = Workers.of_accelerate()
        try:
            first: object = workers.mean(4, 1, part).tolist()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            first = [isinstance(error, FloatingPointError), isinstance(error, ValueError), str(error)]
        return [first, workers.mean(2, 1, lambda i: torch.tensor([10.0 + i])).tolist()]

    return in_processes(work)


def test_a_number_that_is_not_finite_in_one_process_is_the_same_error_in_all() -> None:
    for part in (1, 2):
        both = failing({part: FloatingPointError("the denoiser returned NaN")})
        for first, after in both:  # type: ignore[misc]
            assert first[0] and "the denoiser returned NaN" in first[2]
            assert after == [10.5]


def test_any_other_error_in_one_process_is_an_error_in_all_and_nobody_waits() -> None:
    first, second = failing({1: RuntimeError("out of memory"), 0: FloatingPointError("NaN")})
    assert first[0][:2] == [False, True] and "process 1 of 2 failed: RuntimeError: out of memory" in first[0][2]  # type: ignore[index]
    assert second[0] == [False, False, "out of memory"]  # type: ignore[index]
    assert first[1] == second[1] == [10.5]  # type: ignore[index]


def test_work_of_one_process_fails_in_all() -> None:
    """Teacher blocks, files of the first process: what has no sum."""

    def work() -> object:
        workers = Workers.of_accelerate()

        def own() -> int:
            if workers.rank == 0:
                raise OSError("no space left")
            return 7

        try:
            return workers.together(own)
        except OSError as error:
            return ["own", str(error)]
        except ValueError as error:
            return ["other's", str(error)]

    assert in_processes(work) == [
        ["own", "no space left"],
        ["other's", "process 0 of 2 failed: OSError: no space left"],
    ]


def test_every_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [own_device(name) for name in (None, "cpu", "cuda:1")] == [None, "cpu", "cuda:1"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for local, own in (("0", "cuda:0"), ("1", "cuda:1"), ("3", "cuda:1")):
        monkeypatch.setenv("WORLD_SIZE", "4")
        monkeypatch.setenv("LOCAL_RANK", local)
        assert [own_device(name) for name in (None, "cuda", own, "cpu")] == [own, own, own, "cpu"]
    with pytest.raises(ValueError, match="device = 'cuda:0', but this process of several computes on cuda:1"):
        own_device("cuda:0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert own_device(None) is None and own_device("cuda:0") == "cuda:0"
