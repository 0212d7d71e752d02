"""Rewards on CLIP encoders of transformers: CLIPScore, PickScore, HPSv2.1 and LAION's aesthetic predictor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from .reward import RewardError
from .reward_pictures import Preparation, padded, preparation_of
from .reward_weights import Head, apply_head, from_open_clip, read_head, read_weights

BATCH = 64  # pictures in one call of an encoder
VIT_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # what PickScore and HPSv2 were trained from

Score = Callable[[Tensor, Tensor], Tensor]  # cosines (B,) and the learned scale, 0-d -> scores (B,)


@dataclass(frozen=True, eq=False)
class ClipReward:
    """A function of the cosine between the embeddings of a picture and its prompt.

    Args:
        name: of the reward.
        model: with frozen weights, float32.
        tokenizer: of its text; longer prompts are cut at the 77 tokens of CLIP.
        prepare: pictures for its image encoder.
        score: of cosines and the exponential of the model's logit scale.
    """

    name: str
    model: CLIPModel
    tokenizer: Any  # transformers' classes say little to a type checker
    prepare: Preparation
    score: Score

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of images (B, 3, H, W) in [0, 1], on the device of the model."""
        device = self.model.device
        config: Any = self.model.config
        length = config.text_config.max_position_embeddings
        parts = []
        for at in range(0, len(images), BATCH):
            texts = list(prompts[at : at + BATCH])
            tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
            out = self.model(
                input_ids=tokens["input_ids"].to(device),
                attention_mask=tokens["attention_mask"].to(device),
                pixel_values=self.prepare(images[at : at + BATCH].to(device)),
            )
            cosine = functional.cosine_similarity(out.image_embeds, out.text_embeds, dim=1)
            parts.append(self.score(cosine, self.model.logit_scale.exp()))
        return torch.cat(parts) if parts else torch.zeros(0)


@dataclass(frozen=True, eq=False)
class AestheticReward:
    """LAION's aesthetic predictor: linear layers on the unit embedding of a picture; the prompt does not matter.

    About 1 to 10, as people rated. Reference: github.com/christophschuhmann/improved-aesthetic-predictor.
    """

    name: str
    model: CLIPModel
    prepare: Preparation
    head: Head

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of images (B, 3, H, W) in [0, 1], on the device of the model."""
        device = self.model.device
        parts = []
        for at in range(0, len(images), BATCH):
            pooled = self.model.vision_model(self.prepare(images[at : at + BATCH].to(device))).pooler_output
            parts.append(apply_head(self.head, functional.normalize(self.model.visual_projection(pooled), dim=1)))
        return torch.cat(parts) if parts else torch.zeros(0)


def clip_score(name: str, source: str, device: str) -> ClipReward:
    """100 max(cos, 0).

    The paper has 2.5 in place of 100 and a prefix "A photo depicts"; 100 and the bare prompt are what leaderboards and
    torchmetrics report, and a factor changes no weighted sum of normalised rewards. Reference: arXiv 2104.08718, Eq. 1.
    """
    return _reward(name, source, source, device, lambda cosine, scale: 100 * cosine.clamp_min(0))


def pick_score(name: str, source: str, device: str) -> ClipReward:
    """exp(logit scale) cos: the logit of being picked, about 20 of 100. Reference: arXiv 2305.01569, Eq. 1.

    The published repository holds the model alone; tokenizer and processor are then those of the ViT-H that it was
    trained from.
    """
    model, _, processor = source.partition(",")
    return _reward(name, model, processor or _own_processor(model), device, lambda cosine, scale: scale * cosine)


def hps(name: str, source: str, device: str) -> ClipReward:
    """cos of HPSv2.1's ViT-H, about 0.2 to 0.35, of whole pictures padded with black. Reference: arXiv 2306.09341.

    Args:
        name: of the reward.
        source: the checkpoint, as safetensors with open_clip's names; after a comma, the hub id or folder of
            configuration and tokenizer where it is not the ViT-H that it was trained from.
        device: where it runs.
    """
    path, _, processor = source.partition(",")
    processor = processor or VIT_H
    weights = from_open_clip(read_weights(path))
    model = CLIPModel(CLIPConfig.from_pretrained(processor))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RewardError(
            f"{path} does not hold the weights of a CLIP such as {processor}, by open_clip's names: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    tokenizer = AutoTokenizer.from_pretrained(processor, trust_remote_code=False)
    return ClipReward(
        name, _frozen(model, device), tokenizer, padded(preparation_of(processor)), lambda cosine, scale: cosine
    )


def aesthetic(name: str, source: str, device: str) -> AestheticReward:
    """LAION's predictor from "CLIP_ID_OR_PATH,HEAD.safetensors"; its head is for openai/clip-vit-large-patch14."""
    encoder, _, head = source.partition(",")
    if not head:
        raise RewardError(f"{name} names no head: give aesthetic:openai/clip-vit-large-patch14,HEAD.safetensors")
    weights = read_weights(head)
    model = CLIPModel.from_pretrained(encoder, use_safetensors=True, dtype=torch.float32)
    layers = read_head(weights, model.visual_projection.out_features, head, device)
    return AestheticReward(name, _frozen(model, device), preparation_of(encoder), layers)


def _reward(name: str, source: str, processor: str, device: str, score: Score) -> ClipReward:
    model = CLIPModel.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(processor, trust_remote_code=False)
    return ClipReward(name, _frozen(model, device), tokenizer, preparation_of(processor), score)


def _own_processor(source: str) -> str:
    """The folder itself where it has a processor, else the ViT-H."""
    files = ("preprocessor_config.json", "processor_config.json")
    return source if any((Path(source) / file).is_file() for file in files) else VIT_H


def _frozen(model: Any, device: str) -> Any:  # noqa: ANN401
    return model.to(device).eval().requires_grad_(False)
