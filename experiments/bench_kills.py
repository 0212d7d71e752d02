"""kill -9 at random moments of a distillation: every run that is resumed afterwards ends with the same bits.

    python -m epd.experiments.bench_kills             # 100 kills, a few minutes
    python -m epd.experiments.bench_kills --kills 5   # a quick look

A small run on an exact mixture of four numbers is learned once undisturbed, with each optimiser. Then runs of the same
configuration, each with a teacher cache of its own, are killed at random moments and resumed until they are through;
their solver.json must equal the undisturbed one byte for byte. Checkpoints are written after every update, so that
kills meet them, too. Writes results/kills.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..denoisers.mixture import GaussianMixture
from ..distill.config import DistillConfig
from ..distill.run import run_distill
from ..formats.files import write_atomically
from ..runs import follow
from ..runs.environment import environment

RESULTS = Path(__file__).resolve().parent / "results" / "kills.json"
SEED = 0
CONFIG: dict[str, object] = {
    "family": "epd", "calls": 5, "pool": 256, "batch": 128, "accumulate": 4, "validation": 128, "dtype": "float64",
    "teacher_tolerance": 1e-6,
}  # fmt: skip
LENGTHS: dict[str, dict[str, object]] = {
    "gauss-newton": {"iterations": 12, "screening": 2},
    "adam": {"iterations": 100, "screening": 10, "validate_every": 10},
    "soap": {"iterations": 100, "screening": 10, "validate_every": 10},
}


def mixture() -> GaussianMixture:
    """Five modes in four dimensions."""
    means = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    return GaussianMixture(means, 0.5, sigma_min=0.02, sigma_max=20.0, name="kills")


@dataclass
class Bench:
    """Runs of one configuration in a folder, and what became of them."""

    optimizer: str
    folder: Path
    seconds: float = 0.0
    kills: int = 0
    finished: int = 0
    equal: int = 0
    phases: Counter[str] = field(default_factory=Counter)

    def learn(self, out: Path) -> None:
        """Begins or resumes the run in `out`."""
        os.environ["EPD_CACHE"] = str(out.with_suffix(".cache"))
        config = DistillConfig.model_validate({**CONFIG, **LENGTHS[self.optimizer], "optimizer": self.optimizer})
        run_distill(mixture(), config, out, resume=out.exists())

    def child(self, out: Path) -> int:
        """Process number of the run in `out`, in a fork of this process."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            self.learn(out)
            code = 0
        finally:
            os._exit(code)

    def whole(self) -> bytes:
        """The table of a run that nobody disturbs; a second one is timed, whose imports are done."""
        self.learn(self.folder / "whole")
        began = time.monotonic()
        self.killed(self.folder / "timed", None)
        self.seconds = time.monotonic() - began
        return (self.folder / "whole" / "solver.json").read_bytes()

    def killed(self, out: Path, moment: float | None) -> bool:
        """Whether the run in `out` was still there to be killed after so many seconds; None lets it end."""
        pid = self.child(out)
        if moment is not None:
            time.sleep(moment)
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            self.kills += 1
            self.phases[phase(out)] += 1
            return True
        if status:
            sys.exit(f"a resumed run failed after {self.kills} kills; it lies in {out}")
        return False

    def run(self, kills: int) -> None:
        """Kills and resumes until there are so many kills, and every run is through and looked at."""
        expected, rng = self.whole(), random.Random(SEED)
        while self.kills < kills:
            out = self.folder / str(self.finished)
            while self.killed(out, rng.uniform(0.0, 0.5) * self.seconds if self.kills < kills else None):
                pass
            self.finished += 1
            self.equal += (out / "solver.json").read_bytes() == expected
            shutil.rmtree(out)
            shutil.rmtree(out.with_suffix(".cache"))


def phase(out: Path) -> str:
    """How far a run had come."""
    if (out / "solver.json").exists():
        return "after the table"
    if list(out.glob(".*")):
        return "while a file was written"
    return "between updates" if (out / "checkpoint.safetensors").exists() else "before the first update"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    follow.CHECKPOINT_SECONDS = 0.0
    rows = []
    shares = [args.kills * (i + 1) // len(LENGTHS) - args.kills * i // len(LENGTHS) for i in range(len(LENGTHS))]
    for optimizer, kills in zip(LENGTHS, shares, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(optimizer, Path(folder))
            bench.run(kills)
        rows.append({"optimizer": optimizer, "kills": bench.kills, "runs": bench.finished, "bit_equal": bench.equal,
                     "seconds_undisturbed": round(bench.seconds, 2), "killed": dict(bench.phases)})  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    configs = {name: {**CONFIG, **lengths} for name, lengths in LENGTHS.items()}
    result = {"kills": args.kills, "seed": SEED, "configs": configs, "rows": rows, "environment": environment()}
    write_atomically(args.out, (json.dumps(result, indent=1) + "\n").encode())
    if any(row["runs"] != row["bit_equal"] for row in rows):
        sys.exit("a resumed run ended with other bits")


if __name__ == "__main__":
    main()
