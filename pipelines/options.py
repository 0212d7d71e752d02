"""How a model is loaded, conditioned and placed: one type, from the command line down to the pipeline."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import tyro
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from ..formats.files import folder_path, read_text, user_path
from ..formats.json_text import parse_json

FROZEN = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)
UserPath: TypeAlias = Annotated[Path, AfterValidator(user_path)]
UserFolder: TypeAlias = Annotated[Path, AfterValidator(folder_path)]  # to be written
PLACEMENT = ("device", "device_map", "offload", "local_only")  # where a model computes changes its rounding only


def mapping(value: object) -> dict[str, Any]:
    """A mapping with names as keys.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return value
    raise ValueError('needed a mapping of names to values, such as {"clean_caption": false}')


def json_mapping(words: list[str]) -> dict[str, Any]:
    """What --options says."""
    try:
        value = parse_json(words[0], ValueError, repr(words[0]))
    except ValueError as error:
        text = 'needed a mapping as JSON, such as \'{"clean_caption": false}\''
        raise ValueError(f"{text}; {error}") from error
    return mapping(value)


JSON_MAPPING = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="JSON",
    instance_from_str=json_mapping,
    is_instance=lambda value: isinstance(value, dict) or value is None,
    str_from_instance=lambda value: [json.dumps(value)],
)


class ModelOptions(BaseModel):
    """How a model is loaded, conditioned and placed; what is left out is the model's own."""

    model_config = FROZEN

    prompts: UserPath | None = None
    """File with one prompt a line; sample number s has prompt number s mod their count. `shapes` and `shapes-exact`
    deal out their own without."""
    prompt: tuple[str, ...] = ()
    """Prompts given directly."""
    negative_prompt: str | None = None
    """Text that guidance leads away from; none: the pipeline's own."""
    labels: tuple[int, ...] = ()
    """Classes, dealt out to samples like prompts; `digits` deals out 0 to 9 without."""
    guidance: float | None = None
    """Guidance scale; none: the model's own."""
    height: int | None = Field(default=None, ge=1)
    """Picture height in pixels; none: the model's own."""
    width: int | None = Field(default=None, ge=1)
    """Picture width in pixels; none: the model's own."""
    resolution: int | None = Field(default=None, ge=1)
    """Picture height and width in pixels, in one option."""
    num_frames: int | None = Field(default=None, ge=1)
    """Number of frames of a video; none: the pipeline's own."""
    options: Annotated[dict[str, Any] | None, JSON_MAPPING] = None
    """Further arguments of the pipeline's call, the same for every sample: {"max_sequence_length": 128}; or of the
    function that makes your own model."""
    network_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Floating point type of the network's weights; none: as they were saved."""
    variant: str | None = None
    """Variant of the weight files, such as fp16."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; none: CUDA where there is one."""
    device_map: str | None = None
    """Spread a pipeline's parts over devices, such as balanced."""
    offload: Literal["none", "model", "sequential", "group"] = "none"
    """What waits on the CPU while it is not needed: none; model: whole parts of a pipeline; sequential: single layers;
    group: single layers, by diffusers' group offloading."""
    accelerate: tuple[str, ...] = ()
    """What makes a network call cheaper, in the order of application: name:number=value,number=value, such as
    reuse:steps=2+4,where=fan. Teachers and converged end points are those of the network as it is."""
    local_only: bool = False
    """Never ask the hub: what is not on this machine is an error."""

    @field_validator("options", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        return None if value is None else mapping(value)

    def chosen(self) -> list[str]:
        """The names of the options that are not left to the model."""
        fields = ModelOptions.model_fields
        return [name for name, field in fields.items() if getattr(self, name) != field.default]

    def keywords(self) -> dict[str, object]:
        """What a function that makes a model is called with: every option that is not left to the model, prompts as
        the texts that they say, and the entries of `options` by their own names.

        Raises:
            ValueError: for an entry of `options` that has the name of an option that is given, too.
        """
        apart = ("prompts", "prompt", "options", "accelerate")
        values: dict[str, object] = {name: getattr(self, name) for name in self.chosen() if name not in apart}
        if self.texts:
            values["prompts"] = self.texts
        twice = sorted(set(values) & set(self.options or {}))
        if twice:
            raise ValueError(f"{twice[0]} is given as an option and in options, too: choose one")
        return values | dict(self.options or {})

    def conditions(self) -> dict[str, object]:
        """What changes a model's numbers, by option, ready for JSON; prompts by their digest, so that a file counts
        by what it says and not by its name.
        """
        apart = (*PLACEMENT, "prompts", "prompt")
        out: dict[str, object] = {name: getattr(self, name) for name in self.chosen() if name not in apart}
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
        return list(self.prompt) or None if self.prompts is None else read_prompts(self.prompts)

    @property
    def size(self) -> tuple[int | None, int | None]:
        """Height and width.

        Raises:
            ValueError: where they stand in two places.
        """
        if self.resolution is None:
            return self.height, self.width
        if self.height is not None or self.width is not None:
            raise ValueError(f"resolution = {self.resolution} and height or width are both given: choose one")
        return self.resolution, self.resolution


def read_prompts(path: str | Path) -> list[str]:
    """One prompt a line, blank lines left out.

    Raises:
        ValueError: for a file that is not UTF-8 text or has no prompt.
    """
    prompts = [line.strip() for line in read_text(Path(path), ValueError).splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{path} has no prompt: write one a line")
    return prompts
