"""Train the embedded text-to-image network `shapes` on the CPU: `python -m epd.experiments.train_shapes`.

A small `SD3Transformer2DModel` (flow matching, prompt dropout 0.1, exponential moving average of the weights) and two
CLIP text encoders, trained together on renderings of the training prompts; the autoencoder is the identity. Stopped, it
goes on from its last checkpoint. What comes out is a `StableDiffusion3Pipeline` folder; `shapes_report` judges it.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from ..denoisers.identity_vae import identity_vae
from ..denoisers.shapes_world import COLOURS, RELATIONS, SHAPES, SHARE_OF_TWO, draw, layouts, parse, prompts
from .training import Training, TrainingConfig
from .training import train as trained

ROOT = Path(__file__).resolve().parent.parent
MODEL_FOLDER = ROOT / "denoisers" / "assets" / "shapes"
WORDS = ("a", *COLOURS, *SHAPES, *sorted({word for relation in RELATIONS for word in relation.split()}))
TOKENS = 10  # eight words between a start and an end
SCALE = 2.0  # of latents over pixels in [-1, 1]: most of a picture is grey, which is 0


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Everything that the trained weights depend on, beside the torch version. One thread: sums keep their order."""

    prompt_dropout: float = 0.1
    noise_mean: float = 0.5  # of the logit of the noise level
    noise_spread: float = 1.3
    layers: int = 4
    heads: int = 4
    head_width: int = 32
    patch: int = 4
    text_width: int = 64
    text_layers: int = 2
    text_width_2: int = 16
    text_layers_2: int = 1
    threads: int = 1


def tokenizer() -> CLIPTokenizer:
    """One token for each word of the world; the letters that lead there are tokens, too."""
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        for pair in merges:  # as they apply to the words so far, so that no new one can come between
            parts = _merged(parts, pair)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = _merged(parts, merges[-1])
    letters = sorted({letter for word in WORDS for letter in (*word[:-1], word[-1] + "</w>")})
    tokens = [*letters, *dict.fromkeys(one + other for one, other in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def text_encoder(width: int, layers: int, vocabulary: int) -> CLIPTextModelWithProjection:
    """An untrained one, with embeddings large enough to be told apart from the start."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 16,
        max_position_embeddings=TOKENS,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    encoder = CLIPTextModelWithProjection(config)
    for name, parameter in encoder.named_parameters():
        if "token_embedding" in name or "position_embedding" in name:
            nn.init.normal_(parameter, std=0.5)
    return encoder


def transformer(config: Config) -> SD3Transformer2DModel:
    """The untrained network: every residual branch and the output start at zero (arXiv 2212.09748, 3.2).

    Positions are learned from orthonormal codes of rows and columns: sines of four places look alike.
    """
    width, joint, side = config.heads * config.head_width, config.text_width + config.text_width_2, 16 // config.patch
    net = SD3Transformer2DModel(
        sample_size=16,
        patch_size=config.patch,
        in_channels=3,
        out_channels=3,
        num_layers=config.layers,
        attention_head_dim=config.head_width,
        num_attention_heads=config.heads,
        joint_attention_dim=joint,
        caption_projection_dim=width,
        pooled_projection_dim=joint,
        pos_embed_max_size=side,
    )
    for name, parameter in net.named_parameters():
        if any(part in name for part in ("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")):
            nn.init.zeros_(parameter)
    row, column = torch.linalg.qr(torch.randn(width, 2 * side))[0].T.split(side)
    codes = (row[:, None] + column[None]).reshape(1, side**2, width) * math.sqrt(width / 2)  # root mean square 1
    del net.pos_embed.pos_embed  # a buffer
    net.pos_embed.pos_embed = nn.Parameter(codes)
    return net


def build(config: Config, vocabulary: int) -> nn.ModuleDict:
    """What is trained, by the names of the pipeline's parts."""
    parts = {
        "transformer": transformer(config),
        "text_encoder": text_encoder(config.text_width, config.text_layers, vocabulary),
        "text_encoder_2": text_encoder(config.text_width_2, config.text_layers_2, vocabulary),
    }
    return nn.ModuleDict(parts)


def velocity(parts: nn.ModuleDict, x: Tensor, level: Tensor, tokens: Tensor) -> Tensor:
    """The network's output with texts encoded as `StableDiffusion3Pipeline` does, without its third encoder."""
    encoded = [parts[name](tokens, output_hidden_states=True) for name in ("text_encoder", "text_encoder_2")]
    hidden = torch.cat([e.hidden_states[-2] for e in encoded], 2)
    pooled = torch.cat([e.text_embeds for e in encoded], 1)
    return parts["transformer"](x, hidden, pooled, 1000 * level, return_dict=False)[0]


class Trainer(Training[nn.ModuleDict]):
    """Of these networks, on renderings of the training prompts."""

    def __init__(self, config: Config) -> None:
        generator = torch.Generator().manual_seed(config.seed)
        torch.manual_seed(config.seed)
        self.settings, self.tokenizer = config, tokenizer()
        super().__init__(config, build(config, len(self.tokenizer)), generator)
        scenes = [parse(prompt) for prompt in prompts("train")]
        texts = [*(scene.prompt for scene in scenes), ""]  # the last one is the unconditional prompt
        ids = self.tokenizer(texts, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
        self.tokens = cast(Tensor, ids)
        self.pictures = [SCALE * (2 * draw(scene, layouts(scene)) - 1) for scene in scenes]
        self.ones = sum(scene.relation is None for scene in scenes)

    def examples(self) -> tuple[Tensor, Tensor]:
        """A batch of latents and the numbers of their prompts: as often two objects as prompts of seeds have."""
        two, which, layout = torch.rand(3, self.config.batch, generator=self.generator)
        count = len(self.pictures) - self.ones
        number = torch.where(two < SHARE_OF_TWO, self.ones + (which * count).long(), (which * self.ones).long())
        chosen = [self.pictures[n] for n in number.tolist()]
        return torch.stack([p[int(u * len(p))] for p, u in zip(chosen, layout.tolist(), strict=True)]), number

    def loss(self) -> Tensor:
        config, generator = self.settings, self.generator
        clean, number = self.examples()
        dropped = torch.rand(config.batch, generator=generator) < config.prompt_dropout
        level = torch.sigmoid(config.noise_mean + config.noise_spread * torch.randn(config.batch, generator=generator))
        noise = torch.randn(clean.shape, generator=generator)
        noisy = torch.lerp(clean, noise, level[:, None, None, None])
        return nn.functional.mse_loss(
            velocity(self.parts, noisy, level, self.tokens[number.masked_fill(dropped, len(self.pictures))]),
            noise - clean,
        )


def train(config: Config, checkpoint: Path) -> tuple[Trainer, dict[str, Any]]:
    """The trainer at its end, and its record."""
    torch.set_num_threads(config.threads)
    trainer = Trainer(config)
    return trainer, trained(trainer, checkpoint)


def save(trainer: Trainer, folder: Path) -> None:
    """The pipeline's folder, with weights in float16."""
    vae = identity_vae(3, 16)
    vae.register_to_config(scaling_factor=SCALE, shift_factor=0.0)
    parts = {name: part.eval().half() for name, part in trainer.average.items()}
    pipe = StableDiffusion3Pipeline(
        **cast(dict[str, Any], parts),
        vae=vae.half(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        tokenizer=trainer.tokenizer,
        tokenizer_2=trainer.tokenizer,
        text_encoder_3=cast(Any, None),
        tokenizer_3=cast(Any, None),
    )
    pipe.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="pipeline folder to write")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "shapes", help="folder of the checkpoint")
    for field in fields(Config):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    given = vars(parser.parse_args())
    out, run = given.pop("out"), given.pop("run")
    run.mkdir(parents=True, exist_ok=True)
    trainer, log = train(Config(**given), run / "checkpoint.safetensors")
    print(f"{sum(p.numel() for p in trainer.parts.parameters())} parameters -> {out}")
    save(trainer, out)
    (out / "training.json").write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    main()
