"""Models by name: the embedded ones, a diffusers pipeline from a folder, or one from the hub."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..denoisers.digits import EMBEDDED, classes_of, digits, digits_exact
from ..denoisers.protocol import Denoiser, Model
from ..denoisers.protocol import Path as OdePath
from ..runs.processes import own_device

if TYPE_CHECKING:
    from ..denoisers.mixture import GaussianMixture

PLACEMENT = ("device", "device_map", "offload")  # where a model computes changes its rounding only


@dataclass(frozen=True)
class ModelOptions:
    """How a model is conditioned and where it computes; what is None is the model's own.

    Args:
        prompts: file with one prompt a line; sample `seed` has prompt number seed mod their count.
        prompt: prompts given directly.
        labels: classes, dealt out like prompts.
        resolution: height and width in one, pixels.
        options: further arguments of the pipeline's call, the same for every sample.
        network_dtype: the network's own; none: as it was saved.
        variant, revision, device_map, offload: see `pipelines.loading`.
    """

    prompts: Path | None = None
    prompt: tuple[str, ...] = ()
    negative_prompt: str | None = None
    labels: tuple[int, ...] = ()
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    resolution: int | None = None
    num_frames: int | None = None
    options: Mapping[str, Any] | None = None
    network_dtype: str | None = None
    variant: str | None = None
    revision: str | None = None
    device: str | None = None
    device_map: str | None = None
    offload: str = "none"

    def given(self) -> list[str]:
        """The names of what is not left to the model."""
        return [item.name for item in fields(self) if getattr(self, item.name) != item.default]

    def conditions(self) -> dict[str, object]:
        """What changes a model's numbers, by option, ready for JSON; prompts by their digest, so that a file counts
        by what it says and not by its name.
        """
        apart = (*PLACEMENT, "prompts", "prompt")
        out: dict[str, object] = {name: getattr(self, name) for name in self.given() if name not in apart}
        if self.texts:
            digest = hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()[:16]
            out["prompts"] = f"{len(self.texts)} texts ({digest})"
        return json.loads(json.dumps(out))

    @functools.cached_property
    def texts(self) -> list[str] | None:
        """The prompts, wherever they stand, read once; none: the pipeline's own.

        Raises:
            ValueError: where they stand in two places, or a file has none.
        """
        if self.prompts is not None and self.prompt:
            raise ValueError("prompts and prompt are both given: choose the file or the text")
        if self.prompts is None:
            return list(self.prompt) or None
        from ..pipelines.loading import read_prompts

        return read_prompts(self.prompts)


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
    def path(self) -> OdePath:
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
    return classes_of(seeds).tolist() if name == "digits" else None


def load_model(name: str, options: ModelOptions = ModelOptions()) -> Model:  # noqa: B008 - frozen
    """The model of this name: `digits`, `digits-exact`, `digits-exact-flow`, a folder (pipeline or EDM), or a hub id.

    Raises:
        ValueError: for an unknown name, or options that the model has no use for.
    """
    if name not in EMBEDDED:
        return _pipeline(name, options)
    allowed = {"labels", "guidance", *(["device"] if options.device in (None, "cpu") else [])}
    useless = [item for item in options.given() if item not in allowed]
    if useless:
        value = getattr(options, useless[0])
        raise ValueError(f"{useless[0]} = {value!r}: the embedded model {name!r} has no such option")
    if any(label not in range(10) for label in options.labels):
        raise ValueError(f"labels = {list(options.labels)}: the digits are 0 to 9")
    guidance = 1.0 if options.guidance is None else options.guidance
    if name == "digits":
        model = digits(guidance)
        return replace(model, seed_rows=lambda s: torch.tensor(dealt(options.labels, s))) if options.labels else model
    mixture = digits_exact("flow" if name.endswith("flow") else "ve")
    if options.labels:
        return LabelledMixture(mixture, options.labels, guidance)
    if options.guidance is not None:
        raise ValueError(f"guidance = {guidance}: {name!r} is unconditional without labels; give labels, too")
    return mixture


def _pipeline(name: str, options: ModelOptions) -> Model:
    # A hub id is owner/name; a folder exists. Anything else is a typing error, better told before torch asks the hub.
    if not Path(name).exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        close = difflib.get_close_matches(name, EMBEDDED, n=1)
        hint = f"perhaps you meant {close[0]!r}; " if close else ""
        known = ", ".join(EMBEDDED)
        raise ValueError(f"no model {name!r}: {hint}give {known}, a pipeline's folder, or a hub id owner/name")
    from ..pipelines import loading

    size = options.resolution
    if size is not None and (options.height is not None or options.width is not None):
        raise ValueError(f"resolution = {size} and height or width are both given: choose one")
    return loading.load_model(
        name,
        prompts=options.texts,
        negative_prompt=options.negative_prompt,
        guidance=options.guidance,
        height=options.height or size,
        width=options.width or size,
        class_labels=list(options.labels) or None,
        num_frames=options.num_frames,
        options=options.options,
        load=loading.Load(
            dtype=options.network_dtype,
            variant=options.variant,
            revision=options.revision,
            device=own_device(options.device) if options.device_map is None else options.device,
            device_map=options.device_map,
            offload=options.offload,  # type: ignore[arg-type] - checked there
        ),
    )
