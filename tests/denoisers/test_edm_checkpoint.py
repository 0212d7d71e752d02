"""Converted EDM checkpoints: exact round trip, and nothing but JSON and safetensors is opened."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from epd.denoisers.edm_checkpoint import CONFIG, WEIGHTS, CheckpointError, EDMConfig, load_edm, save_edm
from epd.denoisers.noise import unit_noise
from epd.pipelines.loading import load_model
from epd.pipelines.options import ModelOptions


class Raw(nn.Module):
    """The call of EDM's raw networks: F(x, c_noise, one-hot labels)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 3, padding=1)
        self.emb = nn.Linear(1 + classes, 3)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        told = c_noise[:, None] if labels is None else torch.cat([c_noise[:, None], labels], 1)
        return self.mix(x) + self.emb(told)[:, :, None, None]


def raw(classes: int = 0) -> Raw:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return Raw(classes)


def config(**changes: Any) -> EDMConfig:  # noqa: ANN401 - any field
    return EDMConfig(**{"name": "edm-tiny", "shape": (3, 8, 8), **changes})


@pytest.mark.parametrize("classes", [0, 4])
def test_denoiser_is_eq_7_of_the_saved_network(tmp_path: Path, classes: int) -> None:
    save_edm(tmp_path, raw(classes).state_dict(), config(num_classes=classes, sigma_data=0.6))
    model = load_edm(tmp_path, Raw(classes), dtype=torch.float64)
    assert (model.name, model.path, model.shape, model.sigma_min, model.sigma_max) == (
        "edm-tiny", "ve", (3, 8, 8), 0.002, 80.0,
    )  # fmt: skip
    seeds, sigma = [2, 7], torch.tensor([3.0, 0.5], dtype=torch.float64)
    x = unit_noise(seeds, (3, 8, 8), torch.float64) * sigma[:, None, None, None]
    s = sigma[:, None, None, None]
    total = s**2 + 0.6**2
    hot = torch.eye(4, dtype=torch.float64)[[2, 3]] if classes else None
    output = raw(classes).double()(x / total.sqrt(), sigma.log() / 4, hot)
    wanted = 0.6**2 / total * x + s * 0.6 / total.sqrt() * output
    torch.testing.assert_close(model.for_seeds(seeds)(x, sigma), wanted, rtol=0, atol=1e-12)


def test_unet2d_needs_no_class(tmp_path: Path) -> None:
    from diffusers.models.unets.unet_2d import UNet2DModel

    options: dict[str, Any] = {
        "sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": [8, 16], "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4, "num_class_embeds": 5,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        unet = UNet2DModel(**options).eval()
    save_edm(tmp_path, unet.state_dict(), config(num_classes=5, unet=options))
    model = load_edm(tmp_path)
    x, sigma = unit_noise([6], (3, 8, 8)) * 2, torch.tensor(2.0, dtype=torch.float64)
    with torch.no_grad():
        output = unet(x / 4.25**0.5, torch.tensor([2.0]).log() / 4, class_labels=torch.tensor([1])).sample
        wanted = 0.25 / 4.25 * x + 1 / 4.25**0.5 * output
        torch.testing.assert_close(model.for_seeds([6])(x, sigma), wanted, rtol=0, atol=1e-5)
    loaded = load_model(tmp_path, ModelOptions(labels=(4, 1), device="cpu"))
    with torch.no_grad():
        torch.testing.assert_close(loaded.for_seeds([7])(x, sigma), wanted, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="is an EDM network: it has no guidance"):
        load_model(tmp_path, ModelOptions(guidance=2.0))


class Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("trap"),)  # type: ignore[return-value]


def test_pickles_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("edm.pkl").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="execute the Python source.*save_edm"):
        load_edm("edm.pkl", raw())
    save_edm("folder", raw().state_dict(), config())
    Path("folder", WEIGHTS).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_edm("folder", raw())
    assert not Path("trap").exists()


def edited(**changes: object) -> str:
    data = {"format": "epd-edm", "version": 1, "name": "n", "shape": [3, 8, 8], "num_classes": 0, "unet": None}
    return json.dumps({**data, "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0, **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid"),
        ("[" * 100_000, "is not valid"),
        ("[]", "is not of format 'epd-edm'"),
        (edited(version=2), "is not of format"),
        (edited(extra=1), "extra"),
        (edited(shape="abc"), "shape"),
        (edited(shape=[3, 8]), "positive integers"),
        (edited(sigma_min=90), "sigma_min < sigma_max"),
        (edited(sigma_data="1"), "sigma_data > 0"),
        (edited(num_classes=-1), "num_classes = -1"),
    ],
)
def test_hostile_configurations_are_one_error(tmp_path: Path, text: str, message: str) -> None:
    save_edm(tmp_path, raw().state_dict(), config())
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_edm(tmp_path, raw())


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="give a folder that save_edm wrote"):
        load_edm(tmp_path / "nowhere", raw())
    save_edm(tmp_path, raw().state_dict(), config())
    with pytest.raises(CheckpointError, match="give network="):
        load_edm(tmp_path)
    with pytest.raises(CheckpointError, match="does not fit Raw"):
        load_edm(tmp_path, raw(4))
