"""The public names: what `epd.NAME` is, whatever was imported before."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import epd

ROOMS_FIRST = [
    "",
    "import epd.distill.config",
    "from epd.distill import run",
    "import epd.distill.learn, epd.evaluation.compare",
]


def test_distill_and_compare_are_functions_and_their_rooms_stay_importable() -> None:
    code = (
        "from inspect import isfunction\n"
        "assert isfunction(epd.distill) and isfunction(epd.compare), (epd.distill, epd.compare)\n"
        "import epd.distill.plan, importlib\n"
        "import epd.distill.run as run\n"
        "assert run.__name__ == 'epd.distill.run'\n"
        "from epd.distill import families\n"
        "from epd.distill.config import DistillConfig\n"
        "assert isfunction(epd.distill) and epd.DistillConfig is DistillConfig\n"
        "assert families.__name__ == 'epd.distill.families'\n"
        "assert importlib.import_module('epd.distill').__name__ == 'epd.distill'\n"
        "from epd import distill\n"
        "assert distill is epd.distill\n"
    )
    # One process imports what takes seconds, and forks one that has not seen epd yet for each order.
    script = (
        "import os, torch, diffusers, sys\n"
        "assert 'epd' not in sys.modules\n"
        f"for before in {ROOMS_FIRST}:\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        f"        exec('import epd\\n' + before + '\\n' + {code!r}, {{}})\n"
        "        os._exit(0)\n"
        "    assert os.waitpid(pid, 0)[1] == 0, before\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_public_name_is_there_and_comes_without_torch_first() -> None:
    code = (
        "import sys, epd\n"
        "assert 'torch' not in sys.modules\n"
        "names = [name for name in epd.__all__ if getattr(epd, name) is None]\n"
        "assert not names, names\n"
        "expected = {'own_model', 'NetworkDenoiser', 'distill', 'compare', 'DistillConfig', 'unit_noise', 'evaluate'}\n"
        "expected |= {'walk', 'Ask', 'Site', 'State', 'Restart', 'batched', 'serial'}\n"
        "assert expected <= set(epd.__all__) and set(epd.__all__) <= set(dir(epd))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_type_checkers_see_the_names_that_are_there_at_run_time() -> None:
    tree = ast.parse(Path(epd.__file__).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {name.name: line.module for line in guarded.body if isinstance(line, ast.ImportFrom) for name in line.names}
    assert seen == {name: epd._HOMES.get(name, "solvers") for name in epd.__all__}
