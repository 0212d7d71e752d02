"""The benchmarks: what their figures are made of, that a stopped command goes on, and the set for a GPU run dry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from epd.experiments.benchmarks import __main__ as command
from epd.experiments.benchmarks import gpu, report, sharding, timing
from epd.experiments.benchmarks.timing import Machine, Settings, Times, bare, bound, recorded
from epd.solvers import sharded as sharding_answer
from epd.solvers.answers import serial
from epd.solvers.sharded import sharded
from epd.solvers.walk import Ask

# KDPM2 wraps a tensor in numpy in a way that numpy 2 calls old; the warning is raised in numpy's own module.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
FLOORED = ("overhead", "latency", "pipelines", "training")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other allocator for the rest of the tests; the tests for CUDA are not looked for in another process."""
    monkeypatch.setattr(command, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(gpu.Run, "tests", lambda run: [{"files": 1, "exit": 0, "said": "nothing"}])


def test_times_are_medians_of_rounds_and_ratios_those_of_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slows down within a round and from round to round."""
    order: list[str] = []
    slow = 1.0

    def seconds(work: Callable[[], object], device: torch.device) -> float:
        nonlocal slow
        slow += 0.1
        return slow * {"a": 3.0, "b": 1.0}[str(work())]

    def named(name: str) -> Callable[[], str]:
        return lambda: (order.append(name), name)[1]

    monkeypatch.setattr(timing, "seconds_of", seconds)
    times = Times({"a": named("a"), "b": named("b")}, Settings(rounds=3))
    assert order == ["a", "b"] * 2 + ["a", "b", "b", "a"] * 3  # two warm up
    row = times.row("a", "b")
    assert (row["ratio"], row["ratio_low"], row["ratio_high"], row["rounds"]) == (3, 3, 3, 3)
    assert row["ms"] == pytest.approx(3000 * (1 + 0.1 * 6.5)) and row["floor_ms"] == pytest.approx(row["ms"] / 3)
    assert row["ms_low"] < row["ms"] < row["ms_high"] and times.ratio("b", "a") == pytest.approx(1 / 3, abs=1e-4)


def test_floors_are_the_calls_that_were_made_and_what_these_cost_at_least() -> None:
    layer = nn.Linear(3, 5, bias=False)
    seen: list[Tensor] = []

    def work() -> None:
        for rows in (2, 2, 4):
            layer(torch.full((rows, 3), float(rows)))

    calls = recorded(layer, work)
    handle = layer.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    bare(layer, calls)()
    handle.remove()
    assert [x.tolist() for x in seen] == [[[2.0] * 3] * 2, [[2.0] * 3] * 2, [[4.0] * 3] * 4]
    flops, moved = 2 * 3 * 5 * (2 + 2 + 4), 4 * (3 * 3 * 5 + (3 + 5) * (2 + 2 + 4))
    assert bound(layer, calls, Machine(1e3, 1e30)) == pytest.approx(flops)
    assert bound(layer, calls, Machine(1e30, 1e3)) == pytest.approx(moved)


@pytest.mark.slow
def test_everything_is_measured_once_and_a_stopped_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--small", "--rounds", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert command.main(words) == 0
    found = report.contents(tmp_path)
    assert [*found] == sorted(command.SUITES) and all(found.values())
    for suite in FLOORED:
        for row in (row for cell in found[suite].values() for row in cell["rows"]):
            assert min(row["ms"], row["floor_ms"], row["bound_ms"], row["ratio"]) > 0, row
    assert "no CUDA device" in found["graphs"]["none"]["rows"]
    rivals = {row["solver"]: row["calls"] for row in found["pipelines"]["64-pixels"]["rows"]}
    assert rivals == {"Heun": 9, "DPM-Solver-2": 9, "DPM-Solver++(2M)": 10, "UniPC": 10, "EPD, K = 2": 10}
    caches = {row["what"]: row for row in found["caches"]["digits-batch-1"]["rows"]}
    assert all(row["own_ms"] >= row["own_ms_least"] > 0 for row in caches.values())
    whole, left_out = (caches[f"first block, {what} left out"]["operations"] for what in ("nothing", "all"))
    assert 0 < caches["none"]["operations"] < whole < 20 and left_out < -100
    peaks = {row["what"]: row["peak_mib"] for row in found["memory"]["training"]["rows"]}
    assert peaks["distillation, checkpointed"] < peaks["distillation"]
    assert all(cell["environment"]["torch"] == torch.__version__ for cells in found.values() for cell in cells.values())
    for name in ("benchmarks.md", "latency.png", "training.png"):
        assert (tmp_path / name).stat().st_size > 1000
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*.json")}
    fans = tmp_path / "memory" / "fans.json"
    fans.unlink()
    monkeypatch.setattr(command, "jobs", only_fans(command.jobs))
    assert command.main(words) == 0
    after = {path: path.read_bytes() for path in tmp_path.glob("*/*.json")}
    assert before.keys() == after.keys() and {path for path in before if after[path] != before[path]} <= {fans}
    capsys.readouterr()
    assert command.main(["--print", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == (tmp_path / "benchmarks.md").read_text().strip()


def only_fans(jobs: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """All cells, of which all but one may not be measured."""

    def refuse(*arguments: object) -> object:
        raise AssertionError("it is there already")

    return lambda *arguments: {
        name: cell if name == "memory.fans" else refuse for name, cell in jobs(*arguments).items()
    }


def test_cells_are_chosen_by_suite_or_name() -> None:
    settings = Settings()
    assert set(command.jobs(["memory"], settings)) == {"memory.fans", "memory.training"}
    assert [*command.jobs(["overhead.digits-batch-1"], settings)] == ["overhead.digits-batch-1"]
    with pytest.raises(ValueError, match="no suite or cell is named 'memroy': there are overhead, latency"):
        command.jobs(["memroy"], settings)


def test_without_a_gpu_the_gpu_set_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2 and "there is no CUDA device here" in capsys.readouterr().err


@pytest.mark.slow
def test_every_part_of_the_gpu_set_runs_dry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run", "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    found = report.contents(tmp_path)["gpu"]
    assert len(found) == 7 and "all parts are measured" in capsys.readouterr().out
    fan = [row for row in found["fan-SD3-1024"]["rows"] if "what" in row]
    assert [row["what"] for row in fan] == ["K = 1", "K = 2", "K = 4"] and fan[0]["over_one"] == 1
    ways = [row["way"] for row in found["graphs-tiny"]["rows"]]
    assert ways == ["eager", "a graph a step", "one graph"]
    assert "EPD, K = 2, graphs" in [row["solver"] for row in found["pipeline-512"]["rows"]]


def test_the_gpu_set_says_what_it_had_no_time_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run", "--minutes", "-1", "--out", str(tmp_path)]) == 1
    assert "left out:\ntests: no time was left\nfan-SD3-1024: no time was left" in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("points", "ranks"), [(1, 2), (2, 2), (3, 2), (4, 3)])
def test_the_bytes_of_the_simulation_are_those_that_are_sent(
    points: int, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = list[int]()

    def all_gather(shares: list[Tensor], share: Tensor, group: object) -> None:
        sent.append(sum(part.nbytes for part in shares) - share.nbytes)

    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda group: ranks)
    monkeypatch.setattr(dist, "all_gather", all_gather)
    monkeypatch.setattr(sharding_answer, "_require_same", lambda ask, group: None)
    ask = Ask(torch.ones(points, 1, 4, 5), torch.linspace(1, 2, points, dtype=torch.float64))
    with torch.no_grad():
        sharded(answer=serial)(lambda x, sigma: x)(ask)
    assert sent == [sharding.received(points, ranks, 4 * 5 * 4)]


def test_sharding_pays_where_the_calls_saved_take_longer_than_the_exchange(tmp_path: Path) -> None:
    """Against the thresholds, on a device that is not full and on one that is."""
    state = 2 * 16 * 128 * 128

    def faster(call: float, wide: float, row: dict[str, Any]) -> bool:
        rows = sharding.simulated([sharding.Measured("n", 1, state, {1: call, row["points"]: wide})])
        (own,) = [r for r in rows if r["link"] == row["link"]]
        return own["one_device_ms"] > own["k_devices_ms"]

    for row in (row for row in sharding.thresholds() if row["state"].startswith("SD3")):
        k, least, full = row["points"], row["exchange_ms"] / 1e3, row["full_ms"] / 1e3
        assert faster(1.0, 1.0 + 1.01 * least, row) and not faster(1.0, 1.0 + 0.99 * least, row)
        assert faster(1.02 * full, k * 1.02 * full, row) and not faster(0.98 * full, k * 0.98 * full, row)
    # Two ranks over PCIe 5: two starts, two hops, and twice half a MiB at 63 GB/s.
    assert sharding.received(2, 2, state) == state == 2**19
    assert sharding.exchange(2, state, sharding.LINKS[1]) == pytest.approx(2 * (8.4e-6 + 5.7e-6 + 2**19 / 63e9))
    row = {"network": "dit-7M", "batch": 3, "answer": "batched", "points": 2, "floor_ms": 3.0}
    cell = {"environment": {"processor": "p"}, "rows": [row, {**row, "points": 1, "floor_ms": 2.0}]}
    (tmp_path / "latency").mkdir()
    (tmp_path / "latency" / "n.json").write_text(json.dumps(cell))
    assert sharding.measured_calls(tmp_path)[0].state == 3 * 4 * 4 * 16 * 16
    assert sharding.main(["--out", str(tmp_path), "--docs", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "sharding.json").read_text())
    assert written["measured_on"] == {"processor": "p"}
    assert (written["simulated"][0]["one_device_ms"], written["simulated"][0]["affords_ms"]) == (5.0, 1.0)
    assert all(link["source"] in (tmp_path / "sharding.md").read_text() for link in written["links"])
    assert (tmp_path / "sharding.png").stat().st_size > 1000
