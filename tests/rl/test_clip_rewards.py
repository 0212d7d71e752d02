"""Rewards on CLIP: against transformers' own processor on Pillow pictures, and cosines by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_rewards import DIMENSION, PROMPTS, SIDE, embeddings, images, pillow, processor, saved_clip
from safetensors.torch import save_file
from torch import Tensor, nn

from epd.rl import clip_rewards
from epd.rl.reward import RewardError, measured
from epd.rl.reward_pictures import Preparation, preparation_of
from epd.rl.reward_weights import from_open_clip
from epd.rl.rewards import load_reward

ROUNDING = 0.02  # of pixels of spread 1: Pillow rounds resized pictures to 8 bits, 1/255/0.26 = 0.015 apart


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("clip")
    return path, saved_clip(path)


def as_pillow(pictures: Tensor) -> Tensor:
    return processor()(images=pillow(pictures), return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize(("height", "width"), [(48, 40), (40, 48), (32, 32), (16, 16), (33, 77), (200, 64)])
def test_pictures_are_prepared_as_transformers_does_on_pillow(
    folder: tuple[Path, Any], height: int, width: int
) -> None:
    pictures = images(3, height, width)
    prepared, expected = preparation_of(str(folder[0]))(pictures), as_pillow(pictures)
    assert prepared.shape == expected.shape == (3, 3, SIDE, SIDE) and prepared.dtype == torch.float32
    assert float((prepared - expected).abs().max()) < ROUNDING
    assert float((prepared - expected).abs().mean()) < ROUNDING / 4
    if (height, width) == (SIDE, SIDE):
        torch.testing.assert_close(prepared, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("kind", "by_hand"), [
    ("clip-score", lambda cosine, model: 100 * cosine.clamp(min=0)),
    ("pick-score", lambda cosine, model: model.logit_scale.detach().exp() * cosine),
])  # fmt: skip
def test_scores_are_cosines(
    folder: tuple[Path, Any], kind: str, by_hand: Callable[[Tensor, Any], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = folder
    pictures = images(8)
    prompts = PROMPTS * 2
    reward = load_reward(f"{kind}:{path}")
    pixels = as_pillow(pictures)
    image, text = embeddings(model, pixels, prompts)
    expected = by_hand((image * text).sum(1), model).double()
    spread = float(expected.std())
    scores = measured(reward, pictures, prompts)
    assert float((scores - expected).abs().max()) < 0.05 * spread, (
        "Pillow rounds to 8 bits, which the network amplifies"
    )
    exact = images(8, SIDE, SIDE)
    image, text = embeddings(model, (exact - mean_and_std()[0]) / mean_and_std()[1], prompts)
    expected = by_hand((image * text).sum(1), model).double()
    torch.testing.assert_close(measured(reward, exact, prompts), expected, atol=1e-4, rtol=1e-5)
    monkeypatch.setattr(clip_rewards, "BATCH", 3)
    torch.testing.assert_close(measured(reward, exact, prompts), expected, atol=1e-4, rtol=1e-5)


def mean_and_std() -> tuple[Tensor, Tensor]:
    of = processor()
    return torch.tensor(of.image_mean).reshape(3, 1, 1), torch.tensor(of.image_std).reshape(3, 1, 1)


def test_grey_pictures_long_prompts_and_no_pictures(folder: tuple[Path, Any]) -> None:
    reward = load_reward(f"pick-score:{folder[0]}")
    grey = images(2)[:, :1]
    prompts = ["a red fox " * 50, "a"]
    torch.testing.assert_close(measured(reward, grey, prompts), measured(reward, grey.expand(-1, 3, -1, -1), prompts))
    assert measured(reward, grey[:0], []).shape == (0,)


def test_clip_score_has_no_negative_values_and_pick_score_has(folder: tuple[Path, Any]) -> None:
    pictures, prompts = images(8), PROMPTS * 2
    clip = measured(load_reward(f"clip-score:{folder[0]}"), pictures, prompts)
    pick = measured(load_reward(f"pick-score:{folder[0]}"), pictures, prompts)
    scale = float(folder[1].logit_scale.detach().exp())
    torch.testing.assert_close(clip, (pick / scale * 100).clamp_min(0), atol=1e-5, rtol=1e-5)


def test_pick_score_takes_another_processor(folder: tuple[Path, Any], tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder[0] / name, alone)
    pictures = images()
    both = [load_reward(f"pick-score:{spec}") for spec in (folder[0], f"{alone},{folder[0]}")]
    assert torch.equal(*(measured(reward, pictures, PROMPTS) for reward in both))
    with pytest.raises(RewardError, match="cannot be loaded"):
        load_reward(f"pick-score:{alone}")  # asks for the ViT-H of the hub, which is not here


def head_of(sizes: tuple[int, ...], seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(before, after) for before, after in zip(sizes, sizes[1:], strict=False)))


def save_head(head: nn.Sequential, path: Path, prefix: str = "layers.") -> None:
    """By the published names, with the gaps that dropout leaves: 0, 2, 4, 6, 7."""
    names = dict(zip(range(5), (0, 2, 4, 6, 7), strict=True))
    weights = head.state_dict().items()
    save_file({f"{prefix}{names[int(k[0])]}{k[1:]}": tensor for k, tensor in weights}, path)


def test_aesthetic_is_the_head_on_unit_embeddings(folder: tuple[Path, Any], tmp_path: Path) -> None:
    head = head_of((DIMENSION, 32, 16, 8, 4, 1))
    save_head(head, tmp_path / "head.safetensors")
    reward = load_reward(f"aesthetic:{folder[0]},{tmp_path / 'head.safetensors'}")
    pictures = images(5, SIDE, SIDE)
    image, _ = embeddings(folder[1], (pictures - mean_and_std()[0]) / mean_and_std()[1], PROMPTS)
    scores = measured(reward, pictures, ["x"] * 5)
    torch.testing.assert_close(scores, head(image)[:, 0].detach().double(), atol=1e-6, rtol=1e-5)
    assert torch.equal(scores, measured(reward, pictures, ["y"] * 5))


@pytest.mark.parametrize("sizes", [(DIMENSION + 1, 32, 1), (DIMENSION, 32, 2)])
def test_heads_of_other_sizes_are_refused(folder: tuple[Path, Any], tmp_path: Path, sizes: tuple[int, ...]) -> None:
    save_head(head_of(sizes), tmp_path / "head.safetensors")
    with pytest.raises(RewardError, match=f"shapes .* from {DIMENSION} to 1 .*768, 1024, 128, 64, 16, 1"):
        load_reward(f"aesthetic:{folder[0]},{tmp_path / 'head.safetensors'}")
    with pytest.raises(RewardError, match="names no head"):
        load_reward(f"aesthetic:{folder[0]}")


def test_a_published_pickle_is_refused_with_how_to_convert_it(folder: tuple[Path, Any], tmp_path: Path) -> None:
    torch.save({"layers.0.weight": torch.zeros(1, DIMENSION)}, tmp_path / "head.pth")
    with pytest.raises(RewardError, match=r"no safetensors file .*convert it once: python -c .*weights_only=True"):
        load_reward(f"aesthetic:{folder[0]},{tmp_path / 'head.pth'}")
    with pytest.raises(RewardError, match="missing.safetensors cannot be read"):
        load_reward(f"hps:{tmp_path / 'missing.safetensors'},{folder[0]}")


def by_open_clip_names(model: Any) -> dict[str, Tensor]:  # noqa: ANN401
    """The model's weights as open_clip's `CLIP` holds them, written out from its modules."""
    ours = model.state_dict()
    out = {"logit_scale": ours["logit_scale"], "attn_mask": torch.zeros(77, 77)}
    text, vision = "text_model.", "vision_model."
    out["token_embedding.weight"] = ours[text + "embeddings.token_embedding.weight"]
    out["positional_embedding"] = ours[text + "embeddings.position_embedding.weight"]
    out["text_projection"] = ours["text_projection.weight"].T
    out["visual.proj"] = ours["visual_projection.weight"].T
    out["visual.conv1.weight"] = ours[vision + "embeddings.patch_embedding.weight"]
    out["visual.class_embedding"] = ours[vision + "embeddings.class_embedding"]
    out["visual.positional_embedding"] = ours[vision + "embeddings.position_embedding.weight"]
    for kind in ("weight", "bias"):
        out[f"ln_final.{kind}"] = ours[f"{text}final_layer_norm.{kind}"]
        out[f"visual.ln_pre.{kind}"] = ours[f"{vision}pre_layrnorm.{kind}"]
        out[f"visual.ln_post.{kind}"] = ours[f"{vision}post_layernorm.{kind}"]
        for tower, prefix in ((text, "transformer"), (vision, "visual.transformer")):
            for n in range(2):
                layer, block = f"{tower}encoder.layers.{n}.", f"{prefix}.resblocks.{n}."
                fused = [ours[f"{layer}self_attn.{part}_proj.{kind}"] for part in "qkv"]
                out[f"{block}attn.in_proj_{kind}"] = torch.cat(fused)
                out[f"{block}attn.out_proj.{kind}"] = ours[f"{layer}self_attn.out_proj.{kind}"]
                out[f"{block}ln_1.{kind}"] = ours[f"{layer}layer_norm1.{kind}"]
                out[f"{block}ln_2.{kind}"] = ours[f"{layer}layer_norm2.{kind}"]
                out[f"{block}mlp.c_fc.{kind}"] = ours[f"{layer}mlp.fc1.{kind}"]
                out[f"{block}mlp.c_proj.{kind}"] = ours[f"{layer}mlp.fc2.{kind}"]
    return {name: tensor.clone().contiguous() for name, tensor in out.items()}


def test_open_clips_names_map_back_to_the_same_weights(folder: tuple[Path, Any]) -> None:
    ours, back = folder[1].state_dict(), from_open_clip(by_open_clip_names(folder[1]))
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_hps_is_the_cosine_of_the_checkpoints_model(folder: tuple[Path, Any], tmp_path: Path, prefix: str) -> None:
    other = saved_clip(tmp_path / "other", seed=1)
    weights = {prefix + name: tensor for name, tensor in by_open_clip_names(other).items()}
    save_file(weights, tmp_path / "hps.safetensors")
    reward = load_reward(f"hps:{tmp_path / 'hps.safetensors'},{folder[0]}")
    pictures = images(4, SIDE, SIDE)
    image, text = embeddings(other, (pictures - mean_and_std()[0]) / mean_and_std()[1], PROMPTS)
    expected = (image * text).sum(1).double()
    torch.testing.assert_close(measured(reward, pictures, PROMPTS), expected, atol=1e-6, rtol=1e-5)


def test_hps_sees_whole_pictures_on_black() -> None:
    whole = Preparation(SIDE, (SIDE, SIDE), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), whole=True)
    white = whole(torch.ones(1, 3, 64, 32))
    assert white.shape == (1, 3, SIDE, SIDE)
    assert bool((white[:, :, :, 8:24] == 1).all()) and float(white.sum()) == 3 * SIDE * 16
    assert torch.equal(whole(torch.ones(1, 3, 32, 64)), white.mT)
    square = images(2, 48, 48)
    cropped = Preparation(SIDE, (SIDE, SIDE), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert torch.equal(whole(square), cropped(square))


def test_a_checkpoint_of_another_model_is_refused(folder: tuple[Path, Any], tmp_path: Path) -> None:
    weights = by_open_clip_names(folder[1])
    del weights["visual.proj"]
    save_file(weights, tmp_path / "x.safetensors")
    with pytest.raises(RewardError, match="does not hold the weights of a CLIP .*visual_projection.weight"):
        load_reward(f"hps:{tmp_path / 'x.safetensors'},{folder[0]}")


@pytest.mark.parametrize("change", [
    {"resample": 2}, {"do_center_crop": False}, {"size": {"longest_edge": 32}},
    {"crop_size": {"height": 64, "width": 64}}, {"image_mean": [0.5]},
])  # fmt: skip
def test_processors_that_are_not_clips_are_refused(
    folder: tuple[Path, Any], tmp_path: Path, change: dict[str, object]
) -> None:
    settings = json.loads((folder[0] / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(RewardError, match="needed are a bicubic resize"):
        preparation_of(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, "size": SIDE, "crop_size": SIDE}))
    assert preparation_of(str(tmp_path)) == preparation_of(str(folder[0])), "as older processors were saved"


@pytest.mark.parametrize("kind", ["clip-score", "pick-score"])
def test_what_is_not_there_is_one_clear_error(kind: str, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=f"the reward {kind}:.* cannot be loaded .*give the id of a model with safet"):
        load_reward(f"{kind}:{tmp_path}")
