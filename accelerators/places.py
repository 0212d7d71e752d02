"""Where things are in the networks of diffusers whose tokens are those of one picture: data alone, by class."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn import Module


@dataclass(frozen=True)
class Places:
    """Of one class of networks. Modules are named by their paths, arguments as `forward` names them.

    Args:
        embedding: makes tokens (rows, N, D) of the state, in raster order; the first of its results.
        output: the last module with a row for each token, (rows, N, *).
        blocks: lists of blocks, in order.
        attention: the self-attentions of a block, those of them that it has: `to_k` and `to_v` see the picture's tokens
            last.
        crossed: attentions of a block that have a query per token, and keys of something else.
        processors: of attention, that ask `to_k` and `to_v` once each and take as many keys as they get.
        residuals: arguments with (rows, N, D) to add behind blocks (ControlNet).
        joint_rotary: argument of the attentions that turns text and picture, queries and keys, alike.
        query_rotary: argument of the attentions that turns queries, (1, N, D).
        length_base: argument of the self-attentions, b in the factor sqrt(log_b(number of queries)) of the logits.
        pixels: that a channel of the state has in a token, where it is packed already.
    """

    embedding: str
    output: str
    blocks: tuple[str, ...]
    attention: tuple[str, ...]
    processors: tuple[str, ...]
    crossed: tuple[str, ...] = ()
    residuals: tuple[str, ...] = ()
    joint_rotary: str = ""
    query_rotary: str = ""
    length_base: str = ""
    pixels: int = 1


PLAIN = ("AttnProcessor2_0", "AttnProcessor")
PLACES: dict[str, Places] = {
    "DiTTransformer2DModel": Places("pos_embed", "proj_out_2", ("transformer_blocks",), ("attn1",), PLAIN),
    "FluxTransformer2DModel": Places(
        "x_embedder",
        "proj_out",
        ("transformer_blocks", "single_transformer_blocks"),
        ("attn",),
        ("FluxAttnProcessor",),
        residuals=("controlnet_block_samples", "controlnet_single_block_samples"),
        joint_rotary="image_rotary_emb",
        pixels=4,
    ),
    "LuminaNextDiT2DModel": Places(
        "patch_embedder",
        "norm_out",
        ("layers",),
        ("attn1",),
        ("LuminaAttnProcessor2_0",),
        crossed=("attn2",),
        query_rotary="query_rotary_emb",
        length_base="base_sequence_length",
    ),
    "PixArtTransformer2DModel": Places("pos_embed", "proj_out", ("transformer_blocks",), ("attn1",), PLAIN),
    "SD3Transformer2DModel": Places(
        "pos_embed",
        "proj_out",
        ("transformer_blocks",),
        ("attn", "attn2"),  # the second one in SD3.5
        ("JointAttnProcessor2_0", "SD3IPAdapterJointAttnProcessor2_0"),
        residuals=("block_controlnet_hidden_states",),
    ),
}


def places_of(network: Module, who: str) -> Places:
    """Of this network.

    Args:
        who: needs them, for the error.

    Raises:
        ValueError: for a class that has none.
    """
    for kind in type(network).__mro__:
        if kind.__name__ in PLACES:
            return PLACES[kind.__name__]
    raise ValueError(f"{who} does not know {type(network).__name__}: it works in {', '.join(PLACES)}")


def parts_of(network: Module, places: Places, names: tuple[str, ...]) -> list[tuple[str, Module]]:
    """(path, module) of these in all blocks, those that a block has."""
    out = []
    for listed in places.blocks:
        for i, block in enumerate(network.get_submodule(listed).children()):
            parts = dict(block.named_children())
            out += [(f"{listed}.{i}.{name}", parts[name]) for name in names if name in parts]
    return out
