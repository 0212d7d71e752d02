"""What slices cost in time and spare in memory: a network call in parts over the whole one.

    python -m epd.experiments.bench_slices            # CUDA where there is some

Video UNets with random weights, two samples. A round is whole, parts, parts, whole, so that a drifting machine
cancels; the median of the rounds' ratios counts. Bytes are those that the call makes and keeps alive together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_motion_model import UNetMotionModel
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from torch import Tensor

from ..accelerators.cuts import Sizes
from ..accelerators.site import Site, Under
from ..accelerators.slices import Slices
from ..denoisers.live_memory import measured
from ..formats.files import write_atomically
from ..runs.environment import environment

RESULTS = Path(__file__).resolve().parent / "results" / "slices.json"
PARTS = (1, 2, 4, 8)


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


def row(kind: str, parts: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """Time, memory and error of a call in so many parts, relative to the whole call."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = {"animatediff": animatediff, "svd": svd}[kind](chosen.width).eval().to(device)
    inputs = tuple(t.to(device) for t in arguments(kind, chosen.size, chosen.frames))
    site = Site({"unet": network}, None, Under())
    cuts = Slices(rows=1).attach(site).cuts
    sizes = Sizes() if parts == 1 else Sizes(-(-2 * chosen.frames // parts), -(-2 * chosen.size**2 // parts))

    def whole() -> Tensor:
        return network(*inputs).sample

    def cut() -> Tensor:
        with cuts.by(sizes):
            return network(*inputs).sample

    with torch.no_grad():
        expected, own = whole(), cut()
        error = float((own - expected).abs().max() / expected.abs().max())
        share = measured(cut).peak / measured(whole).peak
        ratios = []
        for _ in range(chosen.rounds):
            a, b, c, d = (seconds(call, device) for call in (whole, cut, cut, whole))
            ratios.append((b + c) / (a + d))
    site.undo()
    return {"network": kind, "parts": parts, "time": statistics.median(ratios), "memory": share, "error": error}


def main() -> None:
    """Measures and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="channels of the first level, a multiple of 32")
    parser.add_argument("--size", type=int, default=32, help="height and width of the latents")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    rows = [row(kind, parts, chosen) for kind in ("animatediff", "svd") for parts in PARTS]
    for own in rows:
        print(own)
    settings = {name: value for name, value in vars(chosen).items() if name != "output"}
    document = {"environment": environment(), "settings": settings, "rows": rows}
    write_atomically(chosen.output, (json.dumps(document, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
