"""Models by name: the embedded ones, a diffusers pipeline from a folder, or one from the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..accelerators.accelerate import accelerate
from ..accelerators.names import parse
from ..denoisers import shapes_32
from ..denoisers.digits import EMBEDDED, classes_of, digits, digits_exact
from ..denoisers.own_function import is_own_function
from ..denoisers.protocol import Denoiser, Model, Path
from ..denoisers.shapes_exact import shapes_exact
from ..formats.files import user_path
from ..formats.texts import perhaps
from ..pipelines.options import ModelOptions
from ..runs.processes import own_device
from .own_model import load_own_model

if TYPE_CHECKING:
    from ..denoisers.mixture import GaussianMixture

# Class-conditional ones, and how many classes they have.
CLASSES = {**dict.fromkeys(EMBEDDED, 10), "shapes-32": len(shapes_32.classes())}
NAMES = (*EMBEDDED, "shapes", "shapes-exact", "shapes-32")


@dataclass(frozen=True)
class LabelledMixture:
    """A mixture whose samples are conditioned on a class by their seed."""

    mixture: GaussianMixture
    labels: tuple[int, ...]
    guidance: float

    @property
    def name(self) -> str:
        return self.mixture.name

    @property
    def path(self) -> Path:
        return self.mixture.path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mixture.shape

    @property
    def sigma_min(self) -> float:
        return self.mixture.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.mixture.sigma_max

    @property
    def alphas_cumprod(self) -> None:
        return None

    @property
    def device(self) -> str:
        return self.mixture.device

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.mixture(x, sigma)

    def for_seeds(self, seeds: Sequence[int]) -> Denoiser:
        return self.mixture.bind(dealt(self.labels, seeds), self.guidance)

    def decode(self, x: Tensor) -> Tensor:
        return self.mixture.decode(x)


def dealt(values: Sequence[int], seeds: Sequence[int]) -> list[int]:
    """The value that each seed stands for: number seed mod their count."""
    return [values[seed % len(values)] for seed in seeds]


def labels_of(name: str, options: ModelOptions, seeds: Sequence[int]) -> list[int] | None:
    """The class of each sample, where it has one."""
    if options.labels:
        return dealt(options.labels, seeds)
    of_seeds = {"digits": classes_of, "shapes-32": shapes_32.classes_of}
    return of_seeds[name](seeds).tolist() if name in of_seeds else None


def load_model(name: str, options: ModelOptions = ModelOptions()) -> Model:  # noqa: B008 - frozen
    """The model of this name, accelerated as its options say.

    `digits`, `digits-exact`, `digits-exact-flow`, `shapes`, `shapes-exact`, `shapes-32`, a folder (pipeline or EDM), a
    hub id, or what a function of yours returns (`file.py:function`, `package.module:function`).

    Raises:
        ValueError: for an unknown name, options that the model has no use for, or accelerators that do not fit it.
    """
    model = _loaded(name, options)
    return accelerate(model, *map(parse, options.accelerate)) if options.accelerate else model


def _loaded(name: str, options: ModelOptions) -> Model:
    if is_own_function(name):
        return load_own_model(name, options.keywords())
    if name not in NAMES:
        return _pipeline(name, options)
    conditions = {"labels"} if name in CLASSES else {"prompts", "prompt"}
    allowed = {*conditions, "guidance", "accelerate", *(["device"] if options.device in (None, "cpu") else [])}
    useless = [item for item in options.chosen() if item not in allowed]
    if useless:
        value = getattr(options, useless[0])
        raise ValueError(f"{useless[0]} = {value!r}: the embedded model {name!r} has no such option")
    guidance = 1.0 if options.guidance is None else options.guidance
    if name == "shapes":
        from ..pipelines.shapes import shapes

        return shapes(options.texts or (), guidance)
    if name == "shapes-exact":
        return shapes_exact(prompts=options.texts or (), guidance=guidance)
    if any(label not in range(CLASSES[name]) for label in options.labels):
        raise ValueError(f"labels = {list(options.labels)}: the classes of {name!r} are 0 to {CLASSES[name] - 1}")
    if name in ("digits", "shapes-32"):
        model = digits(guidance) if name == "digits" else shapes_32.shapes_32(guidance)
        return replace(model, seed_rows=lambda s: torch.tensor(dealt(options.labels, s))) if options.labels else model
    mixture = digits_exact("flow" if name.endswith("flow") else "ve")
    if options.labels:
        return LabelledMixture(mixture, options.labels, guidance)
    if options.guidance is not None:
        raise ValueError(f"guidance = {guidance}: {name!r} is unconditional without labels; give labels, too")
    return mixture


def _pipeline(name: str, options: ModelOptions) -> Model:
    # A hub id is owner/name; a folder exists. Anything else is a typing error, better told before torch asks the hub.
    if not user_path(name).exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(
            f"no model {name!r}: {perhaps(name, NAMES)}give {', '.join(NAMES)}, a pipeline's folder, a hub id "
            "owner/name, or your own function as file.py:function or package.module:function"
        )
    from ..pipelines import loading

    if options.device_map is None:
        options = options.model_copy(update={"device": own_device(options.device)})
    return loading.load_model(name, options)
