"""ImageReward: against transformers' own image-text matching on the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_rewards import PROMPTS, images, processor, transformers
from safetensors.torch import save_file
from torch import Tensor

from epd.rl import image_reward
from epd.rl.reward import RewardError, measured
from epd.rl.rewards import load_reward

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "an", "red", "fox", "owl", "in", "snow", ",", "far"]
VISION = {  # ours: that of BLIP's visual encoder
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding": "patch_embed.proj",
    "encoder.layers": "blocks",
    "self_attn.qkv": "attn.qkv",
    "self_attn.projection": "attn.proj",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "post_layernorm": "norm",
}


def matching_model() -> Any:  # noqa: ANN401
    """Random BLIP for image-text matching: the same two encoders with another head."""
    torch.manual_seed(0)
    shared = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "max_position_embeddings": 64}
    config = transformers.BlipConfig(
        text_config={"vocab_size": len(WORDS), "encoder_hidden_size": 128, **shared, **special},
        vision_config={"image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6, **shared},
    )
    model = transformers.BlipForImageTextRetrieval(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def checkpoint(model: Any) -> dict[str, Tensor]:  # noqa: ANN401
    """Its encoders by ImageReward's names, with a head whose layers multiply to the first row of the model's."""
    out: dict[str, Tensor] = {}
    for name, tensor in model.vision_model.state_dict().items():
        for ours, theirs in VISION.items():
            name = name.replace(ours, theirs)
        out["blip.visual_encoder." + name] = tensor.clone()
    out |= {f"blip.text_encoder.{k}": tensor.clone() for k, tensor in model.text_encoder.state_dict().items()}
    out["blip.text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    out["blip.vision_proj.weight"] = torch.zeros(2, 2)  # the published file has both, and no use for them
    first = torch.randn(128, 128)
    out["mlp.layers.0.weight"], out["mlp.layers.0.bias"] = first, torch.zeros(128)
    out["mlp.layers.2.weight"] = model.itm_head.weight[:1].detach() @ torch.linalg.inv(first)
    out["mlp.layers.2.bias"] = model.itm_head.bias[:1].detach().clone()
    return out


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    folder = tmp_path_factory.mktemp("image_reward")
    model = matching_model()
    save_file(checkpoint(model), folder / "x.safetensors")
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    tokenizer.save_pretrained(folder)
    return f"image-reward:{folder / 'x.safetensors'},{folder}", model, tokenizer


def test_it_is_the_matching_of_picture_and_prompt_in_its_unit(
    files: tuple[str, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, model, tokenizer = files
    pictures = images(8, 32, 32)
    prompts = PROMPTS * 2
    of = processor()
    mean, std = (torch.tensor(numbers).reshape(3, 1, 1) for numbers in (of.image_mean, of.image_std))
    raw = []
    for picture, prompt in zip(pictures, prompts, strict=True):  # one by one, so without padding
        tokens = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            out = model(tokens["input_ids"], ((picture - mean) / std)[None], attention_mask=tokens["attention_mask"])
        raw.append(out.itm_score[0, 0])
    expected = (torch.stack(raw).double() - 0.16717362830052426) / 1.0333394966054072
    assert float(expected.std()) > 0.01
    reward = load_reward(spec)
    torch.testing.assert_close(measured(reward, pictures, prompts), expected, atol=2e-4, rtol=1e-4)
    monkeypatch.setattr(image_reward, "BATCH", 3)
    torch.testing.assert_close(measured(reward, pictures, prompts), expected, atol=2e-4, rtol=1e-4)


def test_long_prompts_are_cut_and_pictures_of_any_size_prepared(files: tuple[str, Any, Any]) -> None:
    reward = load_reward(files[0])
    pictures = images(2, 50, 40)
    cut, long = (measured(reward, pictures, ["red fox " * times, "a"]) for times in (20, 400))
    assert torch.equal(cut, long)


@pytest.mark.parametrize("missing", [
    "blip.visual_encoder.patch_embed.proj.weight", "blip.text_encoder.encoder.layer.1.output.dense.bias",
    "mlp.layers.2.weight",
])  # fmt: skip
def test_other_weights_are_refused(files: tuple[str, Any, Any], tmp_path: Path, missing: str) -> None:
    weights = checkpoint(files[1])
    del weights[missing]
    save_file(weights, tmp_path / "x.safetensors")
    with pytest.raises(RewardError, match="x.safetensors (does not hold the weights of ImageReward|holds linear)"):
        load_reward(f"image-reward:{tmp_path / 'x.safetensors'}")
