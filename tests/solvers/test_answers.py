"""Who answers a question changes rounding only: serial, streams, sharded over processes, and whichever is faster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.fake_devices import FakeDevices, Unlinked
from helpers.forked import in_processes
from helpers.recording import Recorder, elementwise, normal
from helpers.tables import FAMILIES, full_table
from torch import Tensor

import epd
from epd.solvers.answers import batched, serial, streams
from epd.solvers.auto import Auto, answer_named, auto
from epd.solvers.sharded import sharded
from epd.solvers.walk import Ask

TABLE = full_table([2, 1, 2, 1], width=3)  # fans of three, and four points together
NOISE = normal(5, 2, 3).float()


def solved(answer: Any, noise: Tensor = NOISE, table: epd.Table = TABLE) -> Tensor:  # noqa: ANN401
    with torch.no_grad():
        return epd.solve(table.rule(), elementwise, noise, table.sigmas, answer)


@pytest.mark.parametrize("name", FAMILIES)
def test_named_answers_agree(name: str) -> None:
    expected = solved(batched, table=FAMILIES[name])
    for other in ("batched", "serial", "auto"):
        torch.testing.assert_close(solved(answer_named(other), table=FAMILIES[name]), expected, rtol=1e-5, atol=1e-5)


def test_a_network_of_float32_agrees_to_1e_5() -> None:
    torch.manual_seed(0)
    inside, outside = torch.nn.Conv2d(2, 32, 3, padding=1), torch.nn.Conv2d(32, 2, 3, padding=1)
    noise = normal(3, 2, 8, 8).float()

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.float().reshape(-1, 1, 1, 1)
        return elementwise(x, sigma) + outside(torch.nn.functional.silu(inside(x / (1 + level))))

    with torch.no_grad():
        found = [epd.solve(TABLE.rule(), denoiser, noise, TABLE.sigmas, a) for a in (batched, serial, auto())]
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-5, atol=1e-5)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="answer = 'parallel' is unknown: give one of batched, serial, streams, auto"):
        answer_named("parallel")


def in_group(work: Callable[[], object], count: int) -> list[object]:
    """What `work` returned in each of so many gloo processes."""

    def grouped() -> object:
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        try:
            return work()
        finally:
            dist.destroy_process_group()

    return in_processes(grouped, count)


@pytest.mark.parametrize("count", [2, 3])
def test_sharded_over_processes(count: int) -> None:
    """One, three and four points a question: even and uneven shares, and more processes than points."""

    def work() -> object:
        recorder = Recorder()
        with torch.no_grad():
            x = epd.solve(TABLE.rule(), recorder, NOISE, TABLE.sigmas, sharded())
        return [x.tolist(), [len(rows) // len(NOISE) for rows, _ in recorder.calls]]

    answers: Any = in_group(work, count)
    expected = solved(batched)
    for x, _ in answers:
        torch.testing.assert_close(torch.tensor(x), expected, rtol=1e-5, atol=1e-5)
        assert x == answers[0][0]  # the same bits everywhere
    asked = [1, 3, 4, 1, 3, 4]
    shares = [[(k + count - 1 - rank) // count for k in asked] for rank in range(count)]
    assert [points for _, points in answers] == [[k for k in own if k] for own in shares]


def test_samples_are_sharded_beside_points() -> None:
    """Four processes: the parts of the samples along one axis, the points of each along the other."""

    def work() -> object:
        rank = int(os.environ["RANK"])
        groups: list[Any] = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        part = NOISE.tensor_split(2)[rank // 2]
        return solved(sharded(groups[rank // 2]), part).tolist()

    answers: Any = in_group(work, 4)
    expected = [part.tolist() for part in solved(batched).tensor_split(2)]
    for rank, found in enumerate(answers):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected[rank // 2]), rtol=1e-5, atol=1e-5)


def test_processes_with_other_samples_and_gradients_are_refused() -> None:
    def work() -> object:
        said = []
        for gradients in (False, True):
            try:
                with torch.set_grad_enabled(gradients):
                    noise = NOISE + int(os.environ["RANK"])
                    epd.solve(TABLE.rule(), elementwise, noise, TABLE.sigmas, sharded())
            except ValueError as error:
                said.append(str(error))
        return said

    for different, gradients in in_group(work, 2):  # type: ignore[misc]
        assert "give all ranks of the group the same noise, rule and sigmas" in different
        assert gradients == "gradients do not pass between processes: solve in torch.no_grad(), or batched"


def clocked(times: dict[str, float]) -> tuple[Auto, list[str]]:
    """An `auto` of answers that take so long by its clock, and who was asked."""
    asked: list[str] = []

    def timed(name: str) -> Callable[[epd.Denoiser], Callable[[Ask], Tensor]]:
        def make(denoiser: epd.Denoiser) -> Callable[[Ask], Tensor]:
            own = (batched if name == "batched" else serial)(denoiser)

            def answer(ask: Ask) -> Tensor:
                asked.append(name)
                if times[name] < 0 and len(ask.points) > 1:
                    raise torch.OutOfMemoryError("full")
                return own(ask)

            return answer

        return make

    def seconds(work: Callable[[], object], device: torch.device) -> float:
        work()
        return times[asked[-1]]

    return Auto({name: timed(name) for name in times}, seconds), asked


@pytest.mark.parametrize(
    ("times", "fastest"), [((1.0, 2.0), "batched"), ((2.0, 1.0), "serial"), ((-1.0, 9.0), "serial")]
)
def test_auto_measures_each_shape_once_and_keeps_to_it(times: tuple[float, float], fastest: str) -> None:
    answer, asked = clocked(dict(zip(("batched", "serial"), times, strict=True)))
    first = solved(answer)
    torch.testing.assert_close(first, solved(batched), rtol=1e-5, atol=1e-5)
    assert set(answer.choices.values()) == {fastest}
    assert [shape for shape, _, _ in answer.choices] == [(3, 5, 2, 3), (4, 5, 2, 3)]  # nothing to choose for one point
    asked.clear()
    assert torch.equal(solved(answer), first)
    assert sorted(asked) == sorted(["batched"] * 2 + [fastest] * 4)  # two anchors of one point
    solved(answer, NOISE[:3])
    assert len(answer.choices) == 4


def test_auto_without_memory_for_any_answer_says_so() -> None:
    answer, _ = clocked({"batched": -1.0, "serial": -1.0})
    with pytest.raises(torch.OutOfMemoryError):
        answer(elementwise)(Ask(NOISE[None].expand(2, -1, -1, -1), torch.ones(2).double()))
    assert not answer.choices


class Lane:
    """A CUDA stream that only writes down what is asked of it."""

    log: list[str] = []
    current = "here"

    def __init__(self, name: Any) -> None:  # noqa: ANN401 - a device
        self.name = name if isinstance(name, str) else f"lane {sum('made' in line for line in Lane.log)}"
        Lane.log.append(f"{self.name} made")

    def wait_stream(self, other: Lane) -> None:
        Lane.log.append(f"{self.name} waits for {other.name}")


def test_streams_wait_for_the_question_and_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:

    @contextlib.contextmanager
    def stream(lane: Lane) -> Iterator[None]:
        monkeypatch.setattr(Lane, "current", lane.name)
        yield
        monkeypatch.setattr(Lane, "current", "here")

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        Lane.log.append(f"call on {Lane.current}")
        return x / 2

    monkeypatch.setattr(torch.cuda, "Stream", Lane)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    here = Lane("here")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: here)
    answer = streams(denoiser)
    Lane.log.clear()
    with FakeDevices(allow_non_fake_inputs=True), Unlinked():
        ask = Ask(torch.empty(2, 3, 4, device="cuda"), torch.empty(2, dtype=torch.float64, device="cuda"))
        assert answer(ask).shape == (2, 3, 4)
        assert Lane.log == ["call on here"] * 2
        Lane.log.clear()
        assert answer(ask).device.type == "cuda"
    assert Lane.log == [
        "lane 0 made", "lane 1 made",
        "lane 0 waits for here", "call on lane 0", "lane 1 waits for here", "call on lane 1",
        "here waits for lane 0", "here waits for lane 1",
    ]  # fmt: skip


def test_streams_belong_to_cuda() -> None:
    with pytest.raises(ValueError, match="the points lie on cpu, streams are those of a CUDA device: answer=batched"):
        solved(streams)


def test_auto_tries_no_streams_on_a_processor() -> None:
    answer = auto()
    solved(answer)
    assert set(answer.choices.values()) <= {"batched", "serial"} and answer.choices
