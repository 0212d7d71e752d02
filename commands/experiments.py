"""`epd experiments`: what `python -m epd.experiments.NAME` measures again, under another name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

EXPERIMENTS = {
    "study": "every solver and peer on three worlds, ablations, transfer",
    "stepmix": "StepMix and EpsMix beside plain optimism: return, violations, mixing",
    "bench_learned": "the tables of the README",
    "bench_refine": "refinement by rewards",
    "bench_accelerators": "cheaper network calls under several solvers",
    "bench_together": "tables that are learned with an accelerator on",
    "bench_feedback": "inner-loop feedback",
    "bench_acceleration": "policies that leave out calls",
    "bench_slices": "video networks in parts",
    "benchmarks": "speed and memory on this machine",
}


def run(name: str, words: Sequence[str]) -> int:
    """Runs it with these arguments and returns its exit code."""
    module = importlib.import_module(f"epd.experiments.{name}")
    if module.__spec__ is not None and module.__spec__.submodule_search_locations is not None:  # a package
        module = importlib.import_module(f"{module.__name__}.__main__")
    main: Callable[[Sequence[str]], int] = module.main
    return main(words)
