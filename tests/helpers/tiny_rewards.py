"""Tiny random models of the classes that rewards stand on, saved as folders that `from_pretrained` loads."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from helpers.tiny_pipelines import clip_tokenizer

transformers: Any = importlib.import_module("transformers")
try:  # transformers 5 has a class for Pillow; in 4 the one class is that
    _module: Any = importlib.import_module("transformers.models.clip.image_processing_pil_clip")
    Processor: Any = _module.CLIPImageProcessorPil
except ImportError:
    Processor = transformers.CLIPImageProcessor

SIDE, DIMENSION = 32, 24
PROMPTS = ["a red fox", "an owl in snow, seen from far away", "fox", ""]


def processor() -> Any:  # noqa: ANN401
    """Transformers' own, on Pillow."""
    return Processor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def tiny_clip(seed: int = 0) -> Any:  # noqa: ANN401
    size = len(clip_tokenizer())
    special = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    shared = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(seed)
    config = transformers.CLIPConfig(
        text_config={"vocab_size": size, "hidden_size": 32, **shared, **special},
        vision_config={"hidden_size": 48, "image_size": SIDE, "patch_size": 8, **shared},
        projection_dim=DIMENSION,
    )
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():  # weights as they start are so small that every picture looks alike
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def saved_clip(folder: Path, seed: int = 0) -> Any:  # noqa: ANN401
    """The model that the folder then holds, with tokenizer and processor."""
    model = tiny_clip(seed)
    for part in (model, clip_tokenizer(), processor()):
        part.save_pretrained(folder)
    return model


def images(count: int = 4, height: int = 48, width: int = 40, seed: int = 0) -> Tensor:
    """Pictures of 8-bit values in [0, 1], smooth enough that resizing matters little and not nothing."""
    coarse = torch.rand(count, 3, 6, 5, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth * 255).round() / 255


def pillow(pictures: Tensor) -> list[Image.Image]:
    return [Image.fromarray((p * 255).round().byte().permute(1, 2, 0).numpy()) for p in pictures]


def embeddings(model: Any, pixels: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Unit embeddings of prepared pictures and of prompts one by one, so without padding."""
    with torch.no_grad():
        image = model.visual_projection(model.vision_model(pixels).pooler_output)
        ids = [clip_tokenizer()(p, return_tensors="pt")["input_ids"] for p in prompts]
        text = torch.cat([model.text_projection(model.text_model(i).pooler_output) for i in ids])
    return image / image.norm(dim=1, keepdim=True), text / text.norm(dim=1, keepdim=True)
