"""From what size on it pays to share the points of a question out to several devices, by simulation.

    python -m epd.experiments.benchmarks.sharding

A step of two calls asks one question of a single point, the anchor, and one of K points, the fan. One device answers in
the times of a call of one row and of a call of K rows; K devices in twice that of one row, and two all-gathers. An
all-gather of R ranks is a ring of R - 1 hops: a start, a latency for each hop, and the bytes over the bandwidth. How
many bytes travel is exact. Bandwidths are those that the links' makers state, and latencies those by which NCCL chooses
among its own algorithms, without what a network card adds: neither was measured here. Times of calls are those that
`python -m epd.experiments.benchmarks` measured on its machine. Writes results/benchmarks/sharding.json and .md, and
docs/sharding.png.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...evaluation.pareto import HANDMADE, log_axes, save_figure
from ...formats.files import write_atomically
from ..markdown import MISSING, markdown_table, measured_in
from .networks import SIZES
from .report import PALETTE, RESULTS, contents

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOCS = Path(__file__).resolve().parents[2] / "docs"
POINTS = (2, 4, 8)
START = 8.4e-6  # seconds of any all-gather: ring, `Simple` protocol
NCCL = "NCCL src/graph/tuning.cc at b647562: ring, Simple"


@dataclass(frozen=True)
class Link:
    """A connection between two devices.

    Args:
        bytes: per second, one way, as its makers state.
        latency: seconds of a hop.
        source: of both.
    """

    name: str
    bytes: float
    latency: float
    source: str


LINKS = (
    Link("NVLink 4", 450e9, 3.4e-6, f"NVIDIA H100 data sheet: 900 GB/s both ways; {NCCL}, NVLink"),
    Link("PCIe 5.0 x16", 63e9, 5.7e-6, f"PCI-SIG: 32 GT/s, 16 lanes, 128b/130b; {NCCL}, PCI"),
    Link("PCIe 4.0 x16", 31.5e9, 5.7e-6, f"PCI-SIG: 16 GT/s, 16 lanes, 128b/130b; {NCCL}, PCI"),
    Link("400 Gbit/s network", 50e9, 14e-6, f"InfiniBand NDR or 400GbE line rate; {NCCL}, network"),
    Link("100 Gbit/s network", 12.5e9, 14e-6, f"InfiniBand EDR or 100GbE line rate; {NCCL}, network"),
)
# Numbers of one sample's state, and bytes of a number, as the pipelines hold them.
STATES = {
    "SD3-Medium, 1024 pixels": (16 * 128 * 128, 2), "FLUX.1, 1024 pixels": (4096 * 64, 2),
    "SD1.5, 512 pixels": (4 * 64 * 64, 2), "digits": (64, 4),
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Times of a network's bare calls.

    Args:
        state: bytes of the states of all samples.
        seconds: of a call, by points.
    """

    network: str
    batch: int
    state: int
    seconds: Mapping[int, float]


def received(points: int, ranks: int, state: int) -> int:
    """Bytes that each rank receives for a question: everybody sends the largest share's room, as `sharded` does."""
    return math.ceil(points / ranks) * (ranks - 1) * state


def gather(points: int, ranks: int, state: int, link: Link) -> float:
    """Seconds of the all-gather of a question."""
    return START + (ranks - 1) * link.latency + received(points, ranks, state) / link.bytes


def exchange(points: int, state: int, link: Link) -> float:
    """Seconds that as many devices as points need for the all-gathers of a step, of its anchor and of its fan."""
    return gather(1, points, state, link) + gather(points, points, state, link)


def volumes() -> list[dict[str, Any]]:
    """What a step makes each of R = K devices receive."""
    return [
        {
            "state": name, "state_kib": numbers * size / 1024, "points": k, "devices": k,
            "anchor_kib": received(1, k, numbers * size) / 1024, "fan_kib": received(k, k, numbers * size) / 1024,
        }
        for name, (numbers, size) in STATES.items()
        for k in POINTS
    ]  # fmt: skip


def thresholds() -> list[dict[str, Any]]:
    """From where on K devices make a step faster than one.

    `exchange_ms`: a call of K rows takes so much longer than one of a single row. `full_ms`: a call of a single row
    takes so long, on a device that is full with it, so that K rows take K times as long.
    """
    return [
        {
            "state": name, "points": k, "link": link.name,
            "exchange_ms": round(1e3 * (seconds := exchange(k, numbers * size, link)), 4),
            "full_ms": round(1e3 * seconds / (k - 1), 4),
        }
        for name, (numbers, size) in STATES.items()
        for k in POINTS
        for link in LINKS
    ]  # fmt: skip


def simulated(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """A step on one device against K of them, for each network, number of points and link.

    `affords_ms` is what a step's exchange may take at most, from the measured times alone.
    """
    rows = []
    for one in measured:
        for k in (k for k in POINTS if k in one.seconds and 1 in one.seconds):
            single, wide = one.seconds[1], one.seconds[k]
            for link in LINKS:
                together, apart = single + wide, 2 * single + exchange(k, one.state, link)
                rows.append({
                    "network": one.network, "batch": one.batch, "points": k, "link": link.name,
                    "call_ms": round(1e3 * single, 4), "affords_ms": round(1e3 * (wide - single), 4),
                    "one_device_ms": round(1e3 * together, 4), "k_devices_ms": round(1e3 * apart, 4),
                    "speedup": round(together / apart, 3),
                })  # fmt: skip
    return rows


def volumes_markdown(result: Mapping[str, Any]) -> str:
    """How many bytes travel."""
    columns = ("state_kib", "anchor_kib", "fan_kib")
    rows = [[row["state"], str(row["points"]), *(f"{row[name]:.4g}" for name in columns)] for row in result["volumes"]]
    return markdown_table(["state of one sample", "K = devices", "KiB", "anchor, KiB", "fan, KiB"], rows)


def thresholds_markdown(result: Mapping[str, Any]) -> str:
    """What a step's exchange takes, and in brackets from what call on it pays where a device is full."""
    links = [link["name"] for link in result["links"]]
    found = {(row["state"], row["points"], row["link"]): row for row in result["thresholds"]}
    keys = dict.fromkeys((state, points) for state, points, _ in found)
    rows = [
        [state, f"{k}", *(f"{row['exchange_ms']:.3g} ({row['full_ms']:.3g})" for row in _of(found, (state, k), links))]
        for state, k in keys
    ]
    return markdown_table(["state of one sample", "K = devices", *(f"{link}, ms" for link in links)], rows)


def simulated_markdown(result: Mapping[str, Any]) -> str:
    """One device against K of them, with the calls' times of the machine that measured them."""
    if not result["simulated"]:
        return MISSING
    links = [link["name"] for link in result["links"]]
    found = {(row["network"], row["batch"], row["points"], row["link"]): row for row in result["simulated"]}
    rows = []
    for name, batch, k in dict.fromkeys(key[:3] for key in found):
        own = _of(found, (name, batch, k), links)
        times = [f"{own[0][column]:.3g}" for column in ("call_ms", "affords_ms")]
        rows.append([name, f"{batch}", f"{k}", *times, *(f"{row['speedup']:.3g}" for row in own)])
    head = ["network", "batch", "K = devices", "one row, ms", "K rows take longer by, ms", *links]
    return markdown_table(head, rows) + "\n\n" + measured_in(result["measured_on"])


def _of(found: Mapping[Any, Mapping[str, Any]], key: tuple[Any, ...], links: Sequence[str]) -> list[Mapping[str, Any]]:
    return [found[(*key, link)] for link in links]


FILE = "benchmarks/sharding.json"
RENDERERS = {
    "sharding-volumes": (FILE, volumes_markdown), "sharding-thresholds": (FILE, thresholds_markdown),
    "sharding-simulated": (FILE, simulated_markdown),
}  # fmt: skip


def markdown(result: Mapping[str, Any]) -> str:
    """Everything."""
    sources = [[link["name"], f"{link['bytes'] / 1e9:g}", f"{1e6 * link['latency']:g}", link["source"]]
               for link in result["links"]]  # fmt: skip
    parts = [
        "# Sharing points out to devices", (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip(),
        "## Bytes that each device receives in a step", volumes_markdown(result),
        "## A step's exchange; in brackets the call of one row from which on it pays on full devices",
        thresholds_markdown(result),
        "## Speed of a step on K devices, one being 1, with the measured calls", simulated_markdown(result),
        "## Links", markdown_table(["link", "GB/s one way", "microseconds a hop", "source"], sources),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def draw(result: Mapping[str, Any], path: Path, state: str = "SD3-Medium, 1024 pixels") -> Path:
    """How much faster K devices make a step, against the time of a call of one row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(POINTS), 4), layout="constrained", facecolor="white")
    for axes, k in zip(figure.subplots(1, len(POINTS), sharey=True), POINTS, strict=True):
        _draw_points(axes, k, math.prod(STATES[state]), [row for row in result["simulated"] if row["points"] == k])
    figure.axes[0].set_ylabel("a step's speed, one device being 1")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def _draw_points(axes: Axes, k: int, state: int, rows: Sequence[Mapping[str, Any]]) -> None:
    log_axes(axes)
    axes.set_title(f"{k} points, {k} devices", loc="left")
    calls = [10 ** (-2.3 + 0.05 * i) for i in range(87)]  # ms, up to 100
    for link, color in zip(LINKS, PALETTE, strict=False):
        lost = 1e3 * exchange(k, state, link)
        axes.plot(calls, [(1 + k) * t / (2 * t + lost) for t in calls], color=color, label=link.name)
    axes.axhline(1.0, color=HANDMADE, lw=0.8)
    slowest = [row for row in rows if row["link"] == LINKS[-1].name]
    spots = [row["call_ms"] for row in slowest], [row["speedup"] for row in slowest]
    axes.plot(*spots, "o", ms=4, color="#37474f", label=f"calls measured on a CPU, {LINKS[-1].name}")
    axes.set_ylim(0.1, 5)
    axes.set_xticks([0.01, 0.1, 1, 10, 100])
    axes.set_xlabel("ms of a call of one row; lines: full devices")


def measured_calls(results: Path) -> list[Measured]:
    """Bare calls as measured, fewest samples first."""
    times: dict[tuple[str, int], dict[int, float]] = {}
    for cell in contents(results).get("latency", {}).values():
        for row in cell["rows"]:
            if row["answer"] == "batched":
                times.setdefault((row["network"], row["batch"]), {})[row["points"]] = row["floor_ms"] / 1e3
    return [Measured(name, batch, batch * state_bytes(name), times[name, batch]) for name, batch in sorted(times)]


def state_bytes(network: str) -> int:
    """Of one sample of a network of the benchmark, in float32."""
    with torch.device("meta"):  # its configuration, without its weights
        config = SIZES[network]().config
    return 4 * config["in_channels"] * config["sample_size"] ** 2


def main(argv: Sequence[str] | None = None) -> int:
    """Simulates from what is measured, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the measured cells, and of the result")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the picture")
    args = parser.parse_args(argv)
    latency = contents(args.out).get("latency", {})
    result = {
        "measured_on": next((cell["environment"] for cell in latency.values()), None),
        "start": START,
        "links": [asdict(link) for link in LINKS],
        "volumes": volumes(),
        "thresholds": thresholds(),
        "simulated": simulated(measured_calls(args.out)),
    }
    write_atomically(args.out / "sharding.json", (json.dumps(result, indent=1) + "\n").encode())
    write_atomically(args.out / "sharding.md", (text := markdown(result)).encode())
    print(text, draw(result, args.docs / "sharding.png"), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
