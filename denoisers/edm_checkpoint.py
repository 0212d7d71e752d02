"""EDM checkpoints without their pickles: weights as safetensors, everything else as JSON, no embedded source executed.

The published EDM files (`edm-cifar10-32x32-uncond-vp.pkl`, ...) are pickles that hold their network's Python source and
execute it when opened, so they are not read here. Convert one where you trust it, once, with the program that wrote it:

    net = pickle.load(open("edm-cifar10-32x32-uncond-vp.pkl", "rb"))["ema"]        # in the EDM repository
    save_edm("edm-cifar10", net.model.state_dict(), EDMConfig(                     # the raw network, not its wrapper
        name="edm-cifar10-32x32-uncond-vp", shape=(3, 32, 32), num_classes=0, sigma_data=net.sigma_data))

and load it with the raw network's class, which has to come from you (the published ones have a non-commercial licence):

    model = load_edm("edm-cifar10", network=SongUNet(...))                  # forward(x, c_noise, class_labels) -> F

A network that is a diffusers `UNet2DModel` needs no class: its configuration lies beside the weights (`unet=`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..formats.files import require_regular, user_path
from ..formats.json_text import read_json
from .networks import NetworkDenoiser, Rows
from .preconditioning import edm

FORMAT, VERSION = "epd-edm", 1
WEIGHTS, CONFIG = "weights.safetensors", "edm.json"
MAX_CONFIG, MAX_WEIGHTS = 2**20, 2**40


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: the message names the file, what was found and what is needed."""


@dataclasses.dataclass(frozen=True)
class EDMConfig:
    """What an EDM network is beside its weights.

    Args:
        name: what tables record as the model that they were learned for.
        shape: (C, H, W) of one picture in [-1, 1].
        num_classes: 0 is unconditional; the network then gets None for its labels, else one-hot rows (R, num_classes).
        sigma_data: 0.5 for all published ones.
        sigma_min, sigma_max: the range in use.
        unet: configuration of a diffusers `UNet2DModel`, where the network is one; it gets class numbers (R,).
    """

    name: str
    shape: tuple[int, ...]
    num_classes: int = 0
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    unet: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or any(type(side) is not int or side < 1 for side in self.shape):
            raise CheckpointError(f"shape = {self.shape} must be (channels, height, width), positive integers")
        if type(self.num_classes) is not int or self.num_classes < 0:
            raise CheckpointError(f"num_classes = {self.num_classes!r} must be an integer, 0 for unconditional ones")
        numbers = (self.sigma_data, self.sigma_min, self.sigma_max)
        if not all(type(n) in (int, float) and math.isfinite(n) and n > 0 for n in numbers) or numbers[1] >= numbers[2]:
            raise CheckpointError(f"need sigma_data > 0 and 0 < sigma_min < sigma_max < inf, got {numbers}")


def save_edm(folder: str | Path, weights: Mapping[str, Tensor], config: EDMConfig) -> None:
    """Writes `weights.safetensors` and `edm.json`; runs wherever the checkpoint could be opened.

    Args:
        weights: the raw network's `state_dict()`.
    """
    folder = user_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    own = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    save_file(own, str(folder / WEIGHTS))
    data = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(config)}
    (folder / CONFIG).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def load_edm(
    folder: str | Path,
    network: nn.Module | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> NetworkDenoiser:
    """The denoiser D = c_skip x + c_out F(c_in x, ln(sigma)/4, labels) of a converted checkpoint, frozen.

    A seed stands for the class seed mod num_classes.

    Args:
        folder: what `save_edm` wrote.
        network: an instance of the raw network's class, `forward(x, c_noise, class_labels)`; not for a `UNet2DModel`.
        dtype: the network computes in it.

    Raises:
        CheckpointError: for a pickle, a missing file or class, or weights that are not this network's.

    Reference: arXiv 2206.00364, Eq. 7.
    """
    folder = user_path(folder)
    config = _read(folder)
    if config.unet is None and network is None:
        raise CheckpointError(
            f"{folder} holds weights of a network whose class does not ship here: give network=, an instance of the "
            "class that they were trained with"
        )
    module = network if network is not None else _unet2d(config.unet or {})
    _fill(module, folder / WEIGHTS)
    module.to(device, dtype).eval().requires_grad_(False)
    return NetworkDenoiser(
        call=_call(module, config.num_classes, config.unet is not None and network is None),
        precondition=edm(config.sigma_data),
        shape=config.shape,
        sigma_min=config.sigma_min,
        sigma_max=config.sigma_max,
        name=config.name,
        dtype=dtype,
        device=device,
        seed_rows=_classes(config.num_classes) if config.num_classes else None,
        networks=(module,),
        resolution=config.shape[-2:],
    )


def _classes(count: int) -> Callable[[Sequence[int]], Tensor]:
    return lambda seeds: torch.tensor([seed % count for seed in seeds])


def _call(module: nn.Module, num_classes: int, numbered: bool) -> Callable[[Tensor, Tensor, Rows], Tensor]:
    def labels(rows: Rows) -> Tensor | None:
        classes = rows.get("class_labels")
        if num_classes == 0 or numbered or classes is None:
            return classes if num_classes else None
        return nn.functional.one_hot(classes, num_classes)

    def call(x: Tensor, c_noise: Tensor, rows: Rows) -> Tensor:
        if numbered:
            return module(x, c_noise, class_labels=labels(rows), return_dict=False)[0]
        hot = labels(rows)
        return module(x, c_noise.to(x.dtype), None if hot is None else hot.to(x.dtype))

    return call


def _read(folder: Path) -> EDMConfig:
    if folder.suffix == ".pkl" or folder.is_file():
        raise CheckpointError(
            f"{folder} is not a folder: EDM's pickles execute the Python source they hold and are not opened; convert "
            "one with save_edm where it can be trusted, once (denoisers/edm_checkpoint.py says how)"
        )
    path = folder / CONFIG
    if not path.exists():
        raise CheckpointError(f"{path} cannot be read (no such file): give a folder that save_edm wrote")
    data = read_json(path, CheckpointError, MAX_CONFIG)
    if not isinstance(data, dict) or (data.pop("format", None), data.pop("version", None)) != (FORMAT, VERSION):
        raise CheckpointError(f"{path} is not of format {FORMAT!r} version {VERSION}")
    fields = [f.name for f in dataclasses.fields(EDMConfig)]
    odd = sorted(set(data) ^ set(fields))
    if odd or not isinstance(data["shape"], list) or not isinstance(data["unet"], dict | None):
        raise CheckpointError(
            f"{path}: {odd or ['shape', 'unet']} missing, unknown or of a wrong type; known are {fields}"
        )
    return EDMConfig(**{**data, "shape": tuple(data["shape"])})


def _unet2d(config: Mapping[str, Any]) -> nn.Module:
    from diffusers.models.unets.unet_2d import UNet2DModel

    return UNet2DModel(**{name: value for name, value in config.items() if not name.startswith("_")})


def _fill(module: nn.Module, path: Path) -> None:
    try:
        weights = load_file(str(require_regular(path, CheckpointError, MAX_WEIGHTS)))
        module.load_state_dict(weights, strict=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    except RuntimeError as error:
        lines = " ".join(line.strip() for line in str(error).splitlines()[:3])
        raise CheckpointError(f"{path} does not fit {type(module).__name__}: {lines}") from error
