"""ImageReward on transformers' BLIP classes: its own package needs versions of others that are long gone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BlipTextConfig, BlipVisionConfig, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from .reward import RewardError
from .reward_pictures import Preparation
from .reward_weights import BLIP_VISION, Head, apply_head, below, read_head, read_weights, renamed

BATCH = 64  # pictures in one call
TOKENS = 35  # of a prompt
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of raw scores on the data that it was trained on
BERT = "google-bert/bert-base-uncased"


@dataclass(frozen=True, eq=False)
class ImageReward:
    """(h(text encoder's first state, looking at the picture) - mean) / std, about -2 to 2.

    The published weights have a ViT-L/16 at 224 pixels and a BERT-base with cross attention. Reference: arXiv
    2304.05977, Sec. 3.2.
    """

    name: str
    vision: BlipVisionModel
    text: BlipTextModel
    tokenizer: Any  # transformers' classes say little to a type checker
    prepare: Preparation
    head: Head

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of images (B, 3, H, W) in [0, 1], on the device of the model."""
        device = self.vision.device
        parts = []
        for at in range(0, len(images), BATCH):
            texts = list(prompts[at : at + BATCH])
            tokens = self.tokenizer(
                texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
            )
            states = self.text(
                input_ids=tokens["input_ids"].to(device),
                attention_mask=tokens["attention_mask"].to(device),
                encoder_hidden_states=self.vision(self.prepare(images[at : at + BATCH].to(device))).last_hidden_state,
                is_decoder=False,
            ).last_hidden_state
            parts.append((apply_head(self.head, states[:, 0]) - MEAN) / STD)
        return torch.cat(parts) if parts else torch.zeros(0)


def image_reward(name: str, source: str, device: str) -> ImageReward:
    """ImageReward from its checkpoint as safetensors.

    Args:
        name: of the reward.
        source: the file, whose weights have the names blip.visual_encoder, blip.text_encoder and mlp; after a comma,
            the hub id or folder of the tokenizer where it is not bert-base-uncased.
        device: where it runs.
    """
    path, _, tokenizer = source.partition(",")
    weights = read_weights(path)
    vision = renamed(below(weights, "blip.visual_encoder."), BLIP_VISION)
    text = below(weights, "blip.text_encoder.")
    text = {key: tensor for key, tensor in text.items() if not key.endswith("position_ids")}  # a buffer
    try:
        image_model, text_model = BlipVisionModel(_vision_config(vision)), BlipTextModel(_text_config(text), False)
        image_model.load_state_dict(vision)
        text_model.load_state_dict(text)
    except (KeyError, IndexError, RuntimeError) as error:
        raise RewardError(
            f"{path} does not hold the weights of ImageReward (blip.visual_encoder..., blip.text_encoder..., mlp...): "
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    head = read_head(below(weights, "mlp."), text_model.config.hidden_size, path, device)
    side = image_model.config.image_size
    assert isinstance(side, int)
    words = AutoTokenizer.from_pretrained(tokenizer or BERT, trust_remote_code=False)
    return ImageReward(
        name, _frozen(image_model, device), _frozen(text_model, device), words, Preparation(side, (side, side)), head
    )


def _vision_config(weights: Mapping[str, Tensor]) -> BlipVisionConfig:
    """The sizes that the weights have; heads of 64, as in every ViT and BERT."""
    width, _, _, patch = weights["embeddings.patch_embedding.weight"].shape
    across = round((weights["embeddings.position_embedding"].shape[1] - 1) ** 0.5)
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(weights["encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=_layers(weights),
        num_attention_heads=max(1, width // 64),
        image_size=across * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def _text_config(weights: Mapping[str, Tensor]) -> BlipTextConfig:
    vocabulary, width = weights["embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=weights["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=len(weights["encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=_layers(weights),
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=len(weights["embeddings.position_embeddings.weight"]),
    )


def _layers(weights: Mapping[str, Tensor]) -> int:
    return 1 + max(int(m[1]) for name in weights if (m := re.match(r"encoder\.layers?\.(\d+)\.", name)))


def _frozen(model: nn.Module, device: str) -> Any:  # noqa: ANN401
    return model.to(device).eval().requires_grad_(False)
