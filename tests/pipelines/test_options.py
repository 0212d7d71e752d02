"""The options of a model are one type, and each of them reaches the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import epd
from epd.commands import models
from epd.commands.inputs import model_options
from epd.commands.models import load_model
from epd.commands.options import Compare, Distill, Sample
from epd.pipelines import loading
from epd.pipelines.options import ModelOptions

# Option -> a value of it, and what the pipeline or the model is then given.
REACHES: dict[str, tuple[Any, dict[str, Any]]] = {
    "prompts": ("~/prompts.txt", {"prompts": ["a fox", "an owl"]}),
    "prompt": (("snow",), {"prompts": ["snow"]}),
    "negative_prompt": ("rain", {"negative_prompt": "rain"}),
    "labels": ((3, 1), {"class_labels": [3, 1]}),
    "guidance": (2.5, {"guidance": 2.5}),
    "height": (64, {"height": 64}),
    "width": (32, {"width": 32}),
    "resolution": (16, {"height": 16, "width": 16}),
    "num_frames": (5, {"num_frames": 5}),
    "options": ({"eta": 0}, {"options": {"eta": 0}}),
    "network_dtype": ("float16", {"torch_dtype": torch.float16}),
    "variant": ("fp16", {"variant": "fp16"}),
    "revision": ("main", {"revision": "main"}),
    "device": ("meta", {"to": "meta"}),
    "device_map": ("balanced", {"device_map": "balanced", "to": None}),
    "offload": ("model", {"offload": "model"}),
    "accelerate": (("reuse:steps=1",), {"accelerate": (epd.Reuse((1,)),)}),
    "local_only": (True, {"local_files_only": True}),
}


class Pipe:
    """Records where it is put."""

    def __init__(self, seen: dict[str, Any]) -> None:
        self.seen = seen

    def set_progress_bar_config(self, disable: bool) -> None:
        """Nothing to show."""

    def to(self, device: str) -> None:
        self.seen["to"] = device

    def enable_model_cpu_offload(self, device: str) -> None:
        self.seen["offload"] = "model"


def test_every_option_is_tested() -> None:
    assert set(REACHES) == set(ModelOptions.model_fields)


@pytest.mark.parametrize("name", REACHES)
def test_an_option_reaches_the_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompts.txt").write_text("a fox\n\nan owl\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    seen: dict[str, Any] = {"to": None}

    def load(source: str, **how: object) -> Pipe:
        seen.update(how)
        return Pipe(seen)

    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.DiffusionPipeline.from_pretrained", load)
    monkeypatch.setattr(models, "accelerate", lambda model, *accelerators: seen.update(accelerate=accelerators))
    monkeypatch.setattr(loading, "from_pipeline", lambda pipe, **conditions: seen.update(conditions))
    value, expected = REACHES[name]
    extra = {"device": "cuda"} if name == "offload" else {}
    for command in (Distill, Sample, Compare):
        load_model("me/model", model_options(command(**{name: value, **extra})))
        assert {key: seen[key] for key in expected} == expected


def test_a_model_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / "model").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ValueError, match=f"{tmp_path}/home/model has no model_index.json"):
        load_model("~/model")
    (tmp_path / "home" / "model" / "edm.json").write_text("{}")
    with pytest.raises(ValueError, match=f"{tmp_path}/home/model/edm.json is not of format 'epd-edm'"):
        load_model("~/model")


def test_what_an_edm_network_has_no_use_for_is_refused(tmp_path: Path) -> None:
    (tmp_path / "edm.json").write_text("{}")
    for name, value in {"prompt": ("a",), "variant": "fp16", "offload": "model", "resolution": 8}.items():
        with pytest.raises(ValueError, match=f"is an EDM network: it has no {name}"):
            load_model(str(tmp_path), ModelOptions(**{name: value}))
