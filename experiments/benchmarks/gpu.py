"""The set for one GPU, 8 minutes at most: full-size networks with random weights, fans, graphs, the tests for CUDA.

    python -m epd.experiments.benchmarks.gpu              # on a GPU
    python -m epd.experiments.benchmarks.gpu --dry-run    # tiny networks on a processor: does every line run?

Needs nothing from a network: the configurations are written here, the weights are random. Wheels beside torch:
diffusers, transformers, accelerate, safetensors, numpy, scipy, torchdiffeq, tyro, pydantic, PyYAML, and for the tests
pytest, hypothesis and tensorboard. Each part is written as soon as it is measured (results/benchmarks/gpu);
parts that the time does not suffice for are left out, and the list says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from ...denoisers.networks import NetworkDenoiser, Rows
from ...denoisers.preconditioning import edm
from ...solvers.answers import batched
from ...solvers.graphs import EagerGraph, MakeGraph
from ...solvers.walk import Ask
from . import graphed, report
from .networks import Subject, subject
from .pipelines import contenders
from .timing import Machine, Settings, Times, bare, bound, recorded

NO_GPU = 2
ROOT = Path(__file__).resolve().parents[2]
# As in the published config.json files.
SD15: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "cross_attention_dim": 768,
    "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "norm_num_groups": 32,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
SD3: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
}  # fmt: skip
TINY_SD15 = {**SD15, "block_out_channels": (8, 16), "layers_per_block": 1, "cross_attention_dim": 16,
             "attention_head_dim": 2, "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
             "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}  # fmt: skip
TINY_SD3 = {**SD3, "num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16,
            "caption_projection_dim": 16, "pooled_projection_dim": 8}  # fmt: skip


def large(name: str, pixels: int, device: torch.device, tiny: bool) -> Subject:
    """A full-size network and one sample's conditions, random; or a small one of the same kind on small states.

    Args:
        name: `SD1.5` or `SD3`.
        pixels: of a picture, eight of which are one number of a state.
    """
    side, dtype = (16 if tiny else pixels) // 8, torch.float32 if tiny else torch.bfloat16
    with torch.device(device), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: Any
        if name == "SD1.5":
            network = UNet2DConditionModel(**(TINY_SD15 if tiny else SD15))
            rows = {"encoder_hidden_states": torch.ones(1, 77, network.config.cross_attention_dim, dtype=dtype)}
        else:
            network = SD3Transformer2DModel(**(TINY_SD3 if tiny else SD3))
            rows = {"encoder_hidden_states": torch.ones(1, 154, network.config.joint_attention_dim, dtype=dtype)}
            rows["pooled_projections"] = torch.ones(1, network.config.pooled_projection_dim, dtype=dtype)
    if network.dtype != dtype:
        network.to(dtype)
    network.eval().requires_grad_(False)

    def call(x: Tensor, timestep: Tensor, rows: Rows) -> Tensor:
        return network(x, timestep=timestep, **rows, return_dict=False)[0]

    title, shape = f"{name}, {pixels} pixels", (network.config.in_channels, side, side)
    model = NetworkDenoiser(
        call, edm(), shape, 0.1, 14.0, name=title, dtype=dtype, device=str(device), networks=(network,)
    )
    return Subject(title, network, model, rows)


class Run:
    """What all parts share.

    Args:
        dry: tiny networks on a processor.
        minutes: after which no further part is begun.
    """

    def __init__(self, dry: bool, minutes: float, out: Path) -> None:
        self.device = torch.device("cpu" if dry else "cuda")
        self.dry, self.until, self.out = dry, time.monotonic() + 60 * minutes, out
        self.settings = Settings(1, 1.0, True, self.device) if dry else Settings(30, 4.0, False, self.device)
        self.dtype = torch.float32 if dry else torch.bfloat16
        self.machine = Machine.measured(self.settings, self.dtype)

    @property
    def make_graph(self) -> MakeGraph | None:
        """None: CUDA graphs."""
        return EagerGraph if self.dry else None

    def parts(self) -> dict[str, Callable[[], Any]]:
        """By name, the telling ones first."""
        found: dict[str, Callable[[], Any]] = {"tests": self.tests}
        for name, pixels in (("SD3", 1024), ("SD1.5", 512), ("SD3", 512), ("SD1.5", 1024)):
            found[f"fan-{name}-{pixels}"] = partial(self.fan, name, pixels)
        found["pipeline-512"] = self.pipeline
        sizes = ("tiny",) if self.dry else ("digits", "dit-130M", "dit-675M")
        return found | {f"graphs-{name}": partial(self.graphs, name) for name in sizes}

    def tests(self) -> list[dict[str, Any]]:
        """Every test that needs CUDA."""
        files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text()]
        words = ["-m", "cuda", "--collect-only"] if self.dry else ["-m", "cuda"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words, *files]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        return [{"files": len(files), "exit": done.returncode, "said": lines[-1] if lines else done.stderr[-300:]}]

    def fan(self, name: str, pixels: int) -> list[dict[str, Any]]:
        """K = 1, 2, 4 points in one call beside one point, and graphs of a trajectory of two points."""
        it, rows = large(name, pixels, self.device, self.dry), []
        asks = {}
        for points in (1, 2, 4):
            states = it.noise(1).expand(points, 1, *it.model.shape).contiguous()
            asks[points] = Ask(states, torch.linspace(1, 2, points, dtype=torch.float64, device=self.device))
        answer = batched(it.bound(1))
        works = {f"K = {points}": partial(answer, ask) for points, ask in asks.items()}
        with torch.no_grad():
            calls = {key: recorded(it.network, work) for key, work in works.items()}
        floors = {f"{key}, bare": bare(it.network, made) for key, made in calls.items()}
        times = Times({**works, **floors}, self.settings)
        for key in works:
            rows.append({
                "network": it.name, "parameters": it.parameters, "what": key, **times.row(key, f"{key}, bare"),
                "over_one": times.ratio(key, "K = 1"), "bound_ms": bound(it.network, calls[key], self.machine),
            })  # fmt: skip
        return rows + self._graphs(it)

    def graphs(self, name: str) -> list[dict[str, Any]]:
        """Eager, a graph a step, one graph for the trajectory."""
        return self._graphs(subject(name, self.settings, self.dtype if name != "digits" else torch.float32))

    def _graphs(self, it: Subject) -> list[dict[str, Any]]:
        return graphed.measure(it, 1, self.settings, self.machine, self.make_graph, compiled=False)

    def pipeline(self) -> list[dict[str, Any]]:
        """EPD of five steps and two points against stock schedulers, ten calls each, graphs off and on."""
        unet = large("SD1.5", 512, self.device, self.dry).network
        runs = contenders(unet, 16 if self.dry else 512, 77)
        calls = {name: recorded(unet, run) for name, run in runs.items()}
        floors = {f"{name}, bare": bare(unet, made) for name, made in calls.items()}
        replaying = contenders(unet, 16 if self.dry else 512, 77, graphs=self.make_graph or True)
        graphs = {"EPD, K = 2, graphs": replaying["EPD, K = 2"]}
        times = Times({**runs, **graphs, **floors}, self.settings)
        return [
            {
                "network": "SD1.5, 512 pixels", "solver": name,
                **times.row(name, f"{name.removesuffix(', graphs')}, bare"),
                "over_2m": times.ratio(name, "DPM-Solver++(2M)"),
            }
            for name in [*runs, *graphs]
        ]  # fmt: skip

    def all(self) -> int:
        """Measures the parts for which there is time; the number of those left out or failed."""
        missing = []
        for name, part in self.parts().items():
            if time.monotonic() > self.until:
                missing.append(f"{name}: no time was left")
                continue
            began = time.monotonic()
            try:
                rows = part()
            except Exception as error:  # noqa: BLE001 - the others are worth having
                missing.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
                continue
            finally:
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            report.save(self.out, "gpu", name, self.machine, rows)
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
            for row in rows:
                print("  ", json.dumps(row), flush=True)
        print("\n".join(["left out:", *missing]) if missing else "all parts are measured")
        return len(missing)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures on the GPU; 2 where there is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny networks on a processor, into another folder")
    parser.add_argument("--minutes", type=float, default=7.0, help="no part is begun later; the last may take one")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    args = parser.parse_args(argv)
    if not args.dry_run and not torch.cuda.is_available():
        print("there is no CUDA device here: run it where there is one, or with --dry-run", file=sys.stderr)
        return NO_GPU
    out = args.out or (ROOT / "runs" / "gpu-dry-run" if args.dry_run else report.RESULTS)
    return 1 if Run(args.dry_run, args.minutes, out).all() else 0


if __name__ == "__main__":
    raise SystemExit(main())
