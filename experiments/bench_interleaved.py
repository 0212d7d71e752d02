"""Two pipelines on one network, in two threads, with random interruptions: is every picture the undisturbed one?

    python -m epd.experiments.bench_interleaved

One pipeline has a learned solver; the other one has another learned solver, and in a second round its stock scheduler.
How each run ends is drawn at random: by itself, by an exception in its callback or in the middle of the network. After
each run the thread asks the bare network. Everything is compared bit by bit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from ..formats.files import write_atomically
from ..pipelines.enable import disable, enable
from ..runs.environment import environment
from ..solvers.named import named_table
from ..solvers.table import Provenance, Table

RESULTS = Path(__file__).resolve().parent / "results" / "interleaved.json"
LEARNED = ("sd15-rdpo-10x2", "cifar10-plugin-4x2")  # two points in every second call; four points, remembered slopes
STOCK_STEPS, PICTURES, BATCH = 4, 3, 2
BARE: dict[str, Any] = {
    "sample": torch.linspace(-1, 1, BATCH * 256).reshape(BATCH, 4, 8, 8),
    "timestep": torch.tensor(5.0),
    "encoder_hidden_states": torch.ones(BATCH, 3, 16),
}


class Interruption(Exception):
    """What ends a run early."""


def network() -> UNet2DConditionModel:
    """A small random network, of equal weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=16, attention_head_dim=8,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=4,
        )  # fmt: skip
    return made.eval().requires_grad_(False)


def learned(name: str) -> Table:
    """A published table on this network's noise levels; for what it was learned is of no account here."""
    table = named_table(name)
    return dataclasses.replace(table, sigmas=table.sigmas * (14 / table.sigmas[0]), provenance=Provenance())


class Painter:
    """A pipeline, the pictures that it makes undisturbed, and its runs beside somebody else's.

    Args:
        unet: shared.
        table: name of a learned solver; None leaves the stock scheduler in.
        seed: of what its runs are and how they end.
        runs: their number.
    """

    def __init__(self, unet: UNet2DConditionModel, table: str | None, seed: int, runs: int) -> None:
        parts: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker"))
        betas: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        scheduler = DDIMScheduler(**betas, clip_sample=False, steps_offset=1)
        self.pipe = StableDiffusionPipeline(
            **parts, feature_extractor=None, unet=unet, scheduler=scheduler, requires_safety_checker=False
        )  # type: ignore[arg-type]
        self.pipe.set_progress_bar_config(disable=True)
        self.steps = STOCK_STEPS
        if table is not None:
            solver = learned(table)
            enable(self.pipe, solver)
            self.steps = solver.depth
        self.bare = unet(**BARE).sample
        self.expected = [self.picture(picture, None) for picture in range(PICTURES)]
        self.drawn, self.runs = random.Random(seed), runs
        self.wrong, self.interrupted = 0, 0
        self.error: Exception | None = None

    def picture(self, picture: int, last_call: int | None) -> Tensor:
        """A small picture; a run whose callback is called for `last_call` ends there."""

        def on_step_end(pipe: object, index: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
            if index == last_call:
                raise Interruption
            return {}

        embeds = torch.randn(BATCH, 3, 16, generator=torch.Generator().manual_seed(100 + picture))
        with torch.no_grad():
            return self.pipe(
                prompt_embeds=embeds, negative_prompt_embeds=-embeds, guidance_scale=3.0, output_type="latent",
                generator=[torch.Generator().manual_seed(BATCH * picture + i) for i in range(BATCH)], height=64,
                width=64, num_inference_steps=self.steps, return_dict=False, callback_on_step_end=on_step_end,
            )[0]  # fmt: skip

    def work(self, inside: threading.local) -> None:
        """All runs of one thread; `inside.left` counts the network calls of this thread down to the one that fails."""
        try:
            for _ in range(self.runs):
                self._one(inside)
        except Exception as error:  # noqa: BLE001 - a thread's errors are told by the one that waits for it
            self.error = error

    def _one(self, inside: threading.local) -> None:
        picture, way = self.drawn.randrange(PICTURES), self.drawn.choice(("whole", "whole", "callback", "network"))
        last = self.drawn.randrange(4)
        inside.left = last if way == "network" else None
        try:
            made = self.picture(picture, last if way == "callback" else None)
            self.wrong += way != "whole" or not torch.equal(made, self.expected[picture])
        except Interruption:
            self.interrupted += 1
            self.wrong += way == "whole"
        inside.left = None
        self.wrong += not torch.equal(self.pipe.unet(**BARE).sample, self.bare)


def interleave(tables: Sequence[str | None], runs: int, seed: int) -> dict[str, int]:
    """Two painters on one network at the same time, `runs` runs each."""
    unet, inside, order = network(), threading.local(), []
    painters = [Painter(unet, table, seed + i, runs) for i, table in enumerate(tables)]

    def note(module: object, args: object, output: object) -> None:
        order.append(threading.get_ident())
        left = vars(inside).get("left")
        if left == 0:
            raise Interruption
        inside.left = None if left is None else left - 1

    handle = unet.mid_block.register_forward_hook(note)  # type: ignore[union-attr]
    threads = [threading.Thread(target=painter.work, args=(inside,)) for painter in painters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.remove()
    for painter in painters:
        if painter.error is not None:
            raise painter.error
        disable(painter.pipe)
    return {
        "runs": runs * len(painters),
        "interrupted": sum(painter.interrupted for painter in painters),
        "network_calls": len(order),
        "changes_of_thread": sum(one != other for one, other in zip(order[1:], order, strict=False)),
        "wrong": sum(painter.wrong for painter in painters),
        "hooks_left": len(unet._forward_pre_hooks) + len(unet._forward_hooks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="of both pipelines and both rounds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rounds = {"two learned solvers": LEARNED, "a learned solver and a stock scheduler": (LEARNED[0], None)}
    rows = {name: interleave(tables, args.runs // 4, args.seed) for name, tables in rounds.items()}
    for name, row in rows.items():
        print(name, json.dumps(row))
    result = {"seed": args.seed, "environment": environment(), "rows": rows}
    write_atomically(args.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
