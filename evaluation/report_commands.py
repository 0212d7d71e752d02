"""The commands that made a run and that look at it, as they are typed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..distill.config import DistillConfig
from ..rl.config import RefineConfig
from .report_run import Run
from .tune_config import TuneConfig

UNKNOWN = "MODEL"  # stands for what no file of a run says: how its model was loaded


def flags(values: Mapping[str, Any], schema: type[BaseModel]) -> str:
    """The options whose values are not the defaults, with a space before each; names that no option has are left out.

    Args:
        values: ready for JSON, as config.json holds them.
    """
    words: list[str] = []
    for name, field in schema.model_fields.items():
        value = values.get(name)
        default = field.get_default(call_default_factory=True)
        if name not in values or value == default or value == json.loads(json.dumps(default, default=str)):
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(_word, value if isinstance(value, list) else [value])]
    return "".join(f" {shlex.quote(word)}" for word in words)


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def commands(run: Run, model: str) -> list[str]:
    """What learns the run again, and what looks at it.

    Args:
        model: words after `--model`, with its options.
    """
    path, at = shlex.quote(run.path), f"--model {model}"
    if run.table is None:
        c = run.comparison
        assert c is not None, "a run has a table or a comparison"
        counts = " ".join(map(str, c.calls))
        return [f"epd compare {at} --tables TABLES --calls {counts} --samples {c.samples} --seed {c.seed} --out {path}"]
    first = []
    if run.kind == "tune":
        budget = run.tuned.get("budget")
        first = [f"epd tune {at}{flags(budget if isinstance(budget, dict) else {}, TuneConfig)} --out {path}"]
    elif run.kind == "refine":
        rewards = [shlex.quote(str(name)) for name, _ in _rewards(run)]
        given = f" --reward {' '.join(rewards)}" if rewards else ""
        first = [f"epd refine {at} --table TABLE{given}{flags(run.training, RefineConfig)} --out {path}"]
    elif run.training:
        first = [f"epd distill {at}{flags(run.training, DistillConfig)} --out {path}"]
    return [*first, compare_command(run, model), *looking(run, model)]


def _rewards(run: Run) -> list[list[Any]]:
    rewards = run.config.get("rewards", [])
    return [pair for pair in rewards if isinstance(pair, list) and len(pair) == 2] if isinstance(rewards, list) else []


def compare_command(run: Run, model: str) -> str:
    """What measures the run's table against all hand-made solvers, into the run."""
    assert run.table is not None, "a comparison is compared already"
    path, out = shlex.quote(run.path), shlex.quote(str(Path(run.path) / "compare"))
    return f"epd compare --model {model} --tables {path} --calls {run.table.depth} --out {out}"


def looking(run: Run, model: str) -> list[str]:
    """What shows a run's table, samples and trajectories."""
    path = shlex.quote(run.path)
    samples, log = (shlex.quote(str(Path(run.path) / name)) for name in ("samples", "tb/inspect"))
    return [
        f"epd table show {path}",
        f"epd sample --model {model} --table {path} --out {samples}",
        f"epd inspect --model {model} --table {path} --logdir {log}",
    ]


def report_command(run: Run, model: str) -> str:
    """What writes the page with pictures."""
    return f"epd report {shlex.quote(run.path)} --model {model}"
