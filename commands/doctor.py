"""`epd doctor`: what of this machine helps or hinders, each line with a verdict and, where needed, a remedy."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from .options import Doctor

Verdict = Literal["ok", "warn", "bad"]
NEEDED = (
    "torch", "numpy", "scipy", "diffusers", "transformers", "torchdiffeq", "accelerate", "tensorboard", "safetensors",
    "huggingface_hub", "tyro", "pydantic", "PyYAML", "tqdm",
)  # fmt: skip
EXTRAS = {"matplotlib": "plots: pip install 'epd[plots]'", "torchmetrics": "metrics: pip install 'epd[metrics]'"}
IMPORTS = {
    "diffusers": "from diffusers import StableDiffusionPipeline",
    "transformers": "from transformers import CLIPTextModel",
    "accelerate": "from accelerate import PartialState",
    "tensorboard": "from torch.utils.tensorboard import SummaryWriter",
}
SPACE_GIB = 2.0
OLDEST = (3, 10)
SECONDS = 300


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, whether it is well, and what to do if not."""

    what: str
    value: str
    verdict: Verdict = "ok"
    remedy: str = ""

    def line(self) -> str:
        """For a person."""
        remedy = f"\n      -> {self.remedy}" if self.remedy else ""
        return f"{self.verdict:<4}  {self.what:<16} {self.value}{remedy}"


def doctor(options: Doctor) -> int:
    """Prints all findings; 1 if one is bad."""
    worst: set[str] = set()
    for check in checks(options.out):
        for finding in check():
            print(finding.line(), flush=True)
            worst.add(finding.verdict)
    print("something is bad: see above" if "bad" in worst else "ready", flush=True)
    return int("bad" in worst)


def checks(out: Path) -> list[Callable[[], Iterator[Finding]]]:
    """Every check, in the order of the report."""
    return [python, packages, torch_build, devices, torchvision, imports, lambda: disk(out), cache]


def python() -> Iterator[Finding]:
    """The version of Python, and whether it is supported."""
    value = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < OLDEST:
        yield Finding("python", value, "bad", f"epd needs {OLDEST[0]}.{OLDEST[1]} or newer")
    else:
        yield Finding("python", value)


def installed(package: str) -> str | None:
    """Its version, or none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def packages() -> Iterator[Finding]:
    """The versions of the packages that are needed, and of those for extras."""
    for package in NEEDED:
        value = installed(package)
        if value is None:
            yield Finding(package, "not installed", "bad", f"pip install -c constraints.txt {package}")
        else:
            yield Finding(package, value)
    for package, remedy in EXTRAS.items():
        value = installed(package)
        yield Finding(package, value or "not installed", "ok" if value else "warn", "" if value else f"for {remedy}")


def torch_build() -> Iterator[Finding]:
    """Whether PyTorch was built for the processor or for CUDA."""
    import torch

    build = "CPU" if torch.version.cuda is None else f"CUDA {torch.version.cuda}"
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        remedy = "this machine has an NVIDIA driver, this torch has no CUDA: see https://pytorch.org/get-started"
        yield Finding("torch build", f"{torch.__version__}, {build}", "warn", remedy)
    else:
        yield Finding("torch build", f"{torch.__version__}, {build}")


def devices() -> Iterator[Finding]:
    """The GPUs and their free memory; the processor's threads, where they are more than its cores."""
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            value = f"{torch.cuda.get_device_name(i)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
            yield Finding(f"cuda:{i}", value)
    elif torch.version.cuda is not None:
        yield Finding("cuda", "none visible", "warn", "check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES")
    else:
        yield Finding("devices", "CPU only")
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    if threads > cores:
        yield Finding("threads", f"{threads} on {cores} cores", "warn", f"set OMP_NUM_THREADS={cores}")
    else:
        yield Finding("threads", f"{threads} on {cores} cores")


def run_import(statement: str) -> str:
    """Empty when a fresh Python runs the import, else the last line of what it said."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-W", "ignore", "-c", statement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {SECONDS} s"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return "" if done.returncode == 0 else (lines[-1] if lines else f"exit code {done.returncode}")[:300]


def torchvision() -> Iterator[Finding]:
    """A torchvision that does not fit torch breaks the import of transformers and of every diffusers pipeline."""
    value = installed("torchvision")
    if value is None:
        yield Finding("torchvision", "not installed; nothing here needs it")
        return
    fault = run_import("import torchvision.ops; torchvision.ops.nms")
    if fault:
        remedy = "it breaks diffusers and transformers: pip uninstall torchvision, or install the build that fits torch"
        yield Finding("torchvision", f"{value} does not fit torch: {fault}", "bad", remedy)
    else:
        yield Finding("torchvision", f"{value}, fits torch")


def imports() -> Iterator[Finding]:
    """Whether diffusers and transformers can be imported."""
    for package, statement in IMPORTS.items():
        fault = run_import(statement)
        if fault:
            remedy = "pip install -c constraints.txt 'epd' puts tested versions in place"
            yield Finding(f"import {package}", fault, "bad", remedy)
        else:
            yield Finding(f"import {package}", "works")


def disk(out: Path) -> Iterator[Finding]:
    """The free space where runs will be written, and whether they can be."""
    place = out.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 2**30
    value = f"{free:.1f} GiB free at {place}"
    if free < SPACE_GIB:
        yield Finding("disk", value, "warn", f"runs may need {SPACE_GIB:g} GiB: choose another --out")
    else:
        yield Finding("disk", value)
    yield writable("out", place, "choose another --out")


def writable(what: str, place: Path, remedy: str) -> Finding:
    """Whether a file can be made there."""
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            return Finding(what, f"{place} is writable")
    except OSError as error:
        return Finding(what, f"{place} cannot be written: {error.strerror}", "bad", remedy)


def cache() -> Iterator[Finding]:
    """Whether teacher trajectories can be cached."""
    from ..distill.teacher import cache_folder

    place = cache_folder().absolute()
    while not place.exists():
        place = place.parent
    yield writable("teacher cache", place, "set EPD_CACHE to a folder that can be written")
