"""What slices cost in time and spare in memory: a network call in parts over the whole one, and diffusers' own.

    python -m epd.experiments.bench_slices            # what is missing, or was measured otherwise; on CUDA if there is
    python -m epd.experiments.bench_slices --print    # what is there, with what it should be

Video UNets with random weights, two samples. A round is whole, parts, parts, whole, so that a drifting machine
cancels; the median of the rounds' ratios counts. Bytes are those that the call makes and keeps alive together. Beside
them stands diffusers' split inference in as many parts, which it has for AnimateDiff. Let nothing else run beside it.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_motion_model import UNetMotionModel
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin
from torch import Tensor

from ..accelerators.cuts import Sizes
from ..accelerators.site import Site, Under
from ..accelerators.slices import Slices
from ..denoisers.live_memory import measured
from ..runs.environment import environment
from .bench_learned import read, write
from .markdown import MISSING, markdown_table, measured_in

RESULTS = Path(__file__).resolve().parent / "results" / "slices.json"
PARTS = (1, 2, 4, 8)
JUDGED, BOUNDS = 4, {"memory": 0.40, "memory_of_native": 0.75, "time": 1.25, "error": 1e-5}  # at most, in so many parts
log = logging.getLogger("epd")


def animatediff(width: int) -> Any:  # noqa: ANN401
    """AnimateDiff's layers, two levels."""
    return UNetMotionModel(
        block_out_channels=(width, 2 * width), down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), layers_per_block=2, cross_attention_dim=64,
        num_attention_heads=4, motion_num_attention_heads=4, motion_max_seq_length=32,
    )  # fmt: skip


def svd(width: int) -> Any:  # noqa: ANN401
    """SVD's layers, two levels."""
    return UNetSpatioTemporalConditionModel(
        block_out_channels=(width, 2 * width), layers_per_block=2, cross_attention_dim=64,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), num_attention_heads=(2, 4),
        addition_time_embed_dim=32, projection_class_embeddings_input_dim=96,
    )  # fmt: skip


def arguments(kind: str, size: int, frames: int) -> tuple[Tensor, ...]:
    """Of a call with two samples."""
    time_of_call = torch.tensor(500.0)
    if kind == "svd":
        return torch.randn(2, frames, 8, size, size), time_of_call, torch.randn(2, 1, 64), torch.randn(2, 3)
    return torch.randn(2, 4, frames, size, size), time_of_call, torch.randn(2 * frames, 16, 64)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


class Native(AnimateDiffFreeNoiseMixin):
    """Diffusers' split inference of a network alone; it stays."""

    def __init__(self, network: UNetMotionModel) -> None:
        self.unet = network


def row(kind: str, parts: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """Time, memory and error of a call in so many parts, relative to the whole call."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = {"animatediff": animatediff, "svd": svd}[kind](chosen.width).eval().to(device)
    inputs = tuple(t.to(device) for t in arguments(kind, chosen.size, chosen.frames))
    site = Site({"unet": network}, None, Under())
    cuts = Slices(rows=1).attach(site).cuts

    def whole() -> Tensor:
        return network(*inputs).sample

    def cut() -> Tensor:
        with cuts.by(Sizes(parts=parts)):
            return network(*inputs).sample

    with torch.no_grad():
        expected, own = whole(), cut()
        error = float((own - expected).abs().max() / expected.abs().max())
        bytes_whole, bytes_cut = measured(whole).peak, measured(cut).peak
        ratios = []
        for _ in range(chosen.rounds):
            a, b, c, d = (seconds(call, device) for call in (whole, cut, cut, whole))
            ratios.append((b + c) / (a + d))
        out = {
            "network": kind, "parts": parts, "time": round(statistics.median(ratios), 4),
            "times": [round(ratio, 4) for ratio in ratios], "memory": round(bytes_cut / bytes_whole, 4),
            "bytes": bytes_cut, "error": error,
        }  # fmt: skip
        site.undo()
        if kind == "animatediff":
            pixels, frames = -(-2 * chosen.size**2 // parts), -(-2 * chosen.frames // parts)
            Native(network).enable_free_noise_split_inference(pixels, frames)
            native = measured(whole).peak
            out |= {"native_bytes": native, "memory_of_native": round(bytes_cut / native, 4)}
    return out


def bench(path: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Measures what is missing; written after each row."""
    settings = {name: getattr(chosen, name) for name in ("width", "size", "frames", "rounds")}
    content = read(path)
    if content.get("settings") != settings:
        content = {"settings": settings, "rows": {}}
    for kind in ("animatediff", "svd"):
        for parts in PARTS:
            key = f"{kind} {parts}"
            if key not in content["rows"]:
                content["rows"][key] = row(kind, parts, chosen)
                log.info("%s: %s", key, {k: v for k, v in content["rows"][key].items() if k != "times"})
                write(path, {**content, "environment": environment()})
    return read(path)


def broken(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which bounds do not hold."""
    return [
        f"{key}: {name} {row[name]:.4g} is more than {most:g}"
        for key, row in rows.items() if row["parts"] == JUDGED
        for name, most in BOUNDS.items() if name in row and row[name] > most
    ]  # fmt: skip


def printed(content: Mapping[str, Any]) -> str:
    """The rows as Markdown, and whether the bounds hold."""
    if not content:
        return MISSING
    names = ("memory", "memory_of_native", "time", "error")
    cells = [
        [row["network"], str(row["parts"]), *(f"{row[name]:.3g}" if name in row else "" for name in names)]
        for row in content["rows"].values()
    ]
    head = ["network", "parts", "bytes, of the whole", "of diffusers' split", "time", "error"]
    told = broken(content["rows"])
    verdict = "; ".join(told) if told else "Every bound holds"
    bounds = ", ".join(f"{name} {most:g}" for name, most in BOUNDS.items())
    return "\n\n".join(
        [markdown_table(head, cells), f"{verdict} (in {JUDGED} parts at most: {bounds}).",
         measured_in(content["environment"])]
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and writes the file; 1 where a bound does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="channels of the first level, a multiple of 32")
    parser.add_argument("--size", type=int, default=32, help="height and width of the latents")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--print", action="store_true", help="print what is there, measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file of the rows")
    chosen = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    content = read(chosen.out) if chosen.print else bench(chosen.out, chosen)
    print(printed(content))
    return int(bool(content) and bool(broken(content["rows"])))


if __name__ == "__main__":
    raise SystemExit(main())
