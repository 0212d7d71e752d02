"""Published weights of rewards: safetensors read, chains of linear layers, open_clip's and BLIP's names as ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from ..formats.files import require_regular
from .reward import RewardError

LARGEST = 2**34  # bytes; HPSv2.1 has 4 GB, ImageReward 1.8 GB
CONVERT = (
    "convert it once: python -c \"import torch; from safetensors.torch import save_file; w = torch.load('X.pt', "
    "map_location='cpu', weights_only=True); save_file({k: v.clone() for k, v in w.get('state_dict', w).items()}, "
    "'X.safetensors')\""
)
OPEN_CLIP = (  # of one tower, after its prefix; the weights of attention and projections need more than a name
    (r"transformer\.resblocks\.(\d+)\.", r"encoder.layers.\1."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
    (r"^ln_pre\.", "pre_layrnorm."),  # as transformers spells it
    (r"^ln_post\.", "post_layernorm."),
    (r"^ln_final\.", "final_layer_norm."),
    (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^token_embedding\.", "embeddings.token_embedding."),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
)
BLIP_VISION = (
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.", ".self_attn."),
    (r"^norm\.", "post_layernorm."),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^cls_token$", "embeddings.class_embedding"),
)


def read_weights(path: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU, without the `module.` that parallel training puts before names.

    Raises:
        RewardError: for anything else; published .pt and .pth files are pickles, and the message says how to convert.
    """
    file = require_regular(Path(path), RewardError, LARGEST)
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise RewardError(f"{path} is no safetensors file ({error}). If it is a .pt or .pth file, {CONVERT}") from error
    return {name.removeprefix("module."): tensor for name, tensor in weights.items()}


def below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names start so, without that start."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def renamed(weights: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """The weights by new names: every rule, a pattern and its replacement, in turn."""
    out = {}
    for name, tensor in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    return out


def from_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of open_clip's `CLIP` by the names of transformers' `CLIPModel`.

    Queries, keys and values are one matrix (3 D, D) there and three here; projections are (width, dimension) there and
    linear layers here.
    """
    vision = below(weights, "visual.")
    text = {name: tensor for name, tensor in weights.items() if not name.startswith("visual.")}
    out = {}
    for tensors, tower, projection, own in (
        (vision, "vision_model.", "proj", "visual_projection.weight"),
        (text, "text_model.", "text_projection", "text_projection.weight"),
    ):
        for name, tensor in renamed(tensors, OPEN_CLIP).items():
            if name == projection:
                out[own] = tensor.T.contiguous()
            elif name == "logit_scale":
                out[name] = tensor
            elif ".in_proj_" in name:
                for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                    out[tower + name.replace("in_proj_", f"{part}_proj.")] = piece.contiguous()
            elif name != "attn_mask":  # a buffer of some versions
                out[tower + name] = tensor
    return out


Head = list[tuple[Tensor, Tensor]]  # weight and bias of each layer


def read_head(weights: Mapping[str, Tensor], size: int, source: str, device: str) -> Head:
    """The linear layers of a published head, in order.

    LAION's and ImageReward's are named layers.0, 2, 4, 6, 7 (dropout between them) and have sizes 768, 1024, 128, 64,
    16, 1, without an activation.

    Args:
        weights: of the names layers.N.weight and layers.N.bias; others are ignored.
        size: of the embedding that the head takes.
        source: the file, for messages.

    Raises:
        RewardError: for layers that do not lead from `size` to 1.
    """
    numbers = sorted(int(m[1]) for name in weights if (m := re.fullmatch(r"layers\.(\d+)\.weight", name)))
    head = [(weights[f"layers.{n}.weight"], weights.get(f"layers.{n}.bias")) for n in numbers]
    shapes = [tuple(weight.shape) for weight, _ in head]
    fits = all(len(s) == 2 for s in shapes) and all(after[1] == before[0] for before, after in pairwise(shapes))
    biases = all(bias is not None and bias.shape == weight.shape[:1] for weight, bias in head)
    if not (head and fits and biases and shapes[0][1] == size and shapes[-1][0] == 1):
        raise RewardError(
            f"{source} holds linear layers of shapes {shapes}: needed are layers.N.weight and layers.N.bias from "
            f"{size} to 1 (the published ones have sizes 768, 1024, 128, 64, 16, 1, for CLIP ViT-L/14)"
        )
    return [(weight.float().to(device), bias.float().to(device)) for weight, bias in head if bias is not None]


def apply_head(head: Head, embedding: Tensor) -> Tensor:
    """Scores (B,) of embeddings (B, D)."""
    for weight, bias in head:
        embedding = functional.linear(embedding, weight, bias)
    return embedding[:, 0]
