"""The public names: what `epd.NAME` is, whatever was imported before."""

from __future__ import annotations

import subprocess
import sys

import pytest

ROOMS_FIRST = [
    "",
    "import epd.distill.config",
    "from epd.distill import run",
    "import epd.distill.learn, epd.evaluation.compare",
]


@pytest.mark.parametrize("before", ROOMS_FIRST)
def test_distill_and_compare_are_functions_and_their_rooms_stay_importable(before: str) -> None:
    code = (
        f"import epd\n{before}\n"
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
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_comes_without_torch_first() -> None:
    code = (
        "import sys, epd\n"
        "assert 'torch' not in sys.modules\n"
        "names = [name for name in epd.__all__ if getattr(epd, name) is None]\n"
        "assert not names, names\n"
        "expected = {'own_model', 'NetworkDenoiser', 'distill', 'compare', 'DistillConfig', 'unit_noise'}\n"
        "assert expected <= set(epd.__all__) and set(epd.__all__) <= set(dir(epd))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
