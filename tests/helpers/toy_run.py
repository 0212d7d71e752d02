"""A distillation of the toy model as a process of its own: python toy_run.py OUT CHANGES, the latter as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from toy_models import toy_config, toy_mixture

from epd.distill import run as train
from epd.runs import follow

if __name__ == "__main__":
    torch.set_num_threads(1)
    follow.CHECKPOINT_SECONDS = 0.0  # kill it as often as it writes
    train.run_distill(toy_mixture(), toy_config(family="epd", calls=5, **json.loads(sys.argv[2])), Path(sys.argv[1]))
    workers = train.Workers.of_accelerate()
    os.write(1, f"{workers.rank}/{workers.count}\n".encode())  # at once: print's newline may land in another's line
    workers.end()
