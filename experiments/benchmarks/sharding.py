"""From what size on it pays to share the points of a question out to several devices, by simulation.

    python -m epd.experiments.benchmarks.sharding

A question of K points to one sample is answered by one device in the time of one call of K rows, or by R devices in
that of one call of ceil(K / R) rows and an all-gather of ceil(K / R) R states in a ring: R - 1 hops, each the link's
latency and a share over its bandwidth. Times of calls are those that `python -m epd.experiments.benchmarks` measured on
its machine, bandwidths are those that the links' makers state; how many bytes travel is exact. Writes
results/benchmarks/sharding.json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...formats.files import write_atomically
from ..markdown import MISSING, markdown_table, measured_in
from .report import RESULTS, contents

POINTS = (2, 4, 8)


@dataclass(frozen=True)
class Link:
    """A connection between two devices.

    Args:
        bytes: per second, one way, as its makers state.
        latency: seconds until the first byte arrives, an order of magnitude.
    """

    name: str
    bytes: float
    latency: float


LINKS = (
    Link("NVLink 4", 450e9, 5e-6), Link("PCIe 5.0 x16", 63e9, 10e-6), Link("400 Gbit/s network", 50e9, 20e-6),
    Link("10 Gbit/s network", 1.25e9, 50e-6),
)  # fmt: skip
# Numbers of one sample's state, and bytes of a number, as the pipelines hold them.
STATES = {
    "SD3-Medium, 1024 pixels": (16 * 128 * 128, 2), "FLUX.1, 1024 pixels": (4096 * 64, 2),
    "SD1.5, 512 pixels": (4 * 64 * 64, 2), "digits": (64, 4),
}  # fmt: skip


def received(points: int, ranks: int, state: int) -> int:
    """Bytes that each rank receives for a question: everybody sends the largest share's room, as `sharded` does."""
    return math.ceil(points / ranks) * (ranks - 1) * state


def gather(points: int, ranks: int, state: int, link: Link) -> float:
    """Seconds of the all-gather."""
    return (ranks - 1) * link.latency + received(points, ranks, state) / link.bytes


def volumes() -> list[dict[str, Any]]:
    """What a step of two calls (the anchor, then the fan) makes each of R = K devices receive."""
    return [
        {
            "state": name, "state_kib": numbers * size / 1024, "points": k, "devices": k,
            "anchor_kib": received(1, k, numbers * size) / 1024, "fan_kib": received(k, k, numbers * size) / 1024,
        }
        for name, (numbers, size) in STATES.items()
        for k in POINTS
    ]  # fmt: skip


def simulated(times: Mapping[str, Mapping[int, float]]) -> list[dict[str, Any]]:
    """One device against K of them, for each network, number of points and link.

    Args:
        times: network -> rows -> seconds of a call.
    """
    rows, state = [], math.prod(STATES["SD3-Medium, 1024 pixels"])
    for network, seconds in times.items():
        for points in (k for k in POINTS if k in seconds and 1 in seconds):
            for link in LINKS:
                together, apart = seconds[points], seconds[1] + gather(points, points, state, link)
                rows.append({
                    "network": network, "points": points, "link": link.name, "one_device_ms": round(1e3 * together, 4),
                    "k_devices_ms": round(1e3 * apart, 4), "speedup": round(together / apart, 3),
                })  # fmt: skip
    return rows


def thresholds() -> list[dict[str, Any]]:
    """How much longer a call of K rows has to take than one of a single row, for K devices to be as fast as one."""
    return [
        {
            "state": name, "points": k, "link": link.name,
            "break_even_ms": round(1e3 * gather(k, k, numbers * size, link), 4),
        }
        for name, (numbers, size) in STATES.items()
        for k in POINTS
        for link in LINKS
    ]  # fmt: skip


def volumes_markdown(result: Mapping[str, Any]) -> str:
    """How many bytes travel."""
    columns = ("state_kib", "anchor_kib", "fan_kib")
    rows = [[row["state"], str(row["points"]), *(f"{row[name]:.4g}" for name in columns)] for row in result["volumes"]]
    return markdown_table(["state of one sample", "K = devices", "KiB", "anchor, KiB", "fan, KiB"], rows)


def thresholds_markdown(result: Mapping[str, Any]) -> str:
    """How much longer a call of K rows has to take."""
    links = [link["name"] for link in result["links"]]
    found = {(row["state"], row["points"], row["link"]): row["break_even_ms"] for row in result["thresholds"]}
    keys = dict.fromkeys((state, points) for state, points, _ in found)
    rows = [[state, f"{k}", *(f"{found[state, k, link]:.3g}" for link in links)] for state, k in keys]
    return markdown_table(["state of one sample", "K = devices", *(f"{link}, ms" for link in links)], rows)


def simulated_markdown(result: Mapping[str, Any]) -> str:
    """One device against K of them, with the calls' times of the machine that measured them."""
    if not result["simulated"]:
        return MISSING
    links = [link["name"] for link in result["links"]]
    found = {(row["network"], row["points"], row["link"]): row["speedup"] for row in result["simulated"]}
    keys = dict.fromkeys((network, points) for network, points, _ in found)
    rows = [[network, f"{k}", *(f"{found[network, k, link]:.3g}" for link in links)] for network, k in keys]
    text = markdown_table(["network", "K = devices", *links], rows)
    return text + "\n\n" + measured_in(result["measured_on"])


FILE = "benchmarks/sharding.json"
RENDERERS = {
    "sharding-volumes": (FILE, volumes_markdown), "sharding-thresholds": (FILE, thresholds_markdown),
    "sharding-simulated": (FILE, simulated_markdown),
}  # fmt: skip


def call_times(results: Path) -> dict[str, dict[int, float]]:
    """Network -> rows -> seconds of one bare call, of a single sample, as measured."""
    times: dict[str, dict[int, float]] = {}
    for cell in contents(results).get("latency", {}).values():
        for row in cell["rows"]:
            if row["batch"] == 1 and row["answer"] == "batched":
                times.setdefault(row["network"], {})[row["points"]] = row["floor_ms"] / 1e3
    return times


def main(argv: Sequence[str] | None = None) -> int:
    """Simulates from what is measured, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the measured cells, and of the result")
    args = parser.parse_args(argv)
    latency = contents(args.out).get("latency", {})
    result = {
        "measured_on": next((cell["environment"] for cell in latency.values()), None),
        "links": [vars(link) for link in LINKS],
        "volumes": volumes(),
        "thresholds": thresholds(),
        "simulated": simulated(call_times(args.out)),
    }
    write_atomically(args.out / "sharding.json", (json.dumps(result, indent=1) + "\n").encode())
    for row in [*result["thresholds"], *result["simulated"]]:
        print(json.dumps(row))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
