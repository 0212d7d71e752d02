"""The embedded text-to-image network: its files, the stock pipeline, the model whose seeds stand for prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command import Run
from safetensors import safe_open
from torch import Tensor

import epd
from epd import cli
from epd.commands.models import load_model
from epd.denoisers.checks import check_model
from epd.denoisers.fingerprint import conditions_digest
from epd.denoisers.noise import unit_noise
from epd.denoisers.protocol import Model
from epd.denoisers.shapes_verifier import verify
from epd.denoisers.shapes_world import prompt_of, render
from epd.experiments.shapes_report import RESULT, kinds, paint
from epd.pipelines.denoiser import PipelineModel
from epd.pipelines.options import ModelOptions
from epd.pipelines.shapes import MODEL_FOLDER, shapes
from epd.solvers import rules
from epd.solvers.solve import solve

ASKED = ["a red cross above a blue square", "a green triangle", "a blue square left of a yellow cross"]


@pytest.fixture(scope="module")
def pipe() -> Any:  # noqa: ANN401
    pipe = epd.shapes_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def guided() -> PipelineModel:
    return shapes(ASKED, guidance=3.0)


def euler(model: PipelineModel, seeds: Sequence[int], steps: int) -> Tensor:
    """Pictures by our loop, on the grid of `paint`."""
    sigmas = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    with torch.no_grad():
        bound = model.for_seeds(seeds)
        x = solve(rules.euler(), bound, unit_noise(seeds, model.shape), torch.cat([sigmas, torch.zeros(1)]))
        return bound.decode(x)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_stock_pipeline_and_model_paint_the_same(pipe: Any, guidance: float) -> None:  # noqa: ANN401
    seeds = [5, 1, 6, 2]
    model = shapes(ASKED, guidance)
    stock = paint(pipe, model.prompts_of(seeds), seeds, 50, guidance)
    torch.testing.assert_close(euler(model, seeds, 50), stock, rtol=0, atol=1e-4)


def test_it_is_a_model_whose_seeds_stand_for_prompts(guided: PipelineModel) -> None:
    plain: Model = load_model("shapes", ModelOptions(guidance=3.0))
    assert isinstance(plain, PipelineModel)
    check_model(plain, decode=True)
    assert (plain.name, plain.path, plain.shape, plain.guidance) == ("shapes", "flow", (3, 16, 16), 3.0)
    assert (plain.sigma_max, plain.prediction, plain.resolution) == (1.0, "flow", (16, 16))
    assert load_model("shapes", ModelOptions(prompt=("a red cross",))).guidance == 1.0
    assert guided.prompts_of([0, 4, 5]) == [ASKED[0], ASKED[1], ASKED[2]]
    seeds = [*range(20, 32)]
    assert plain.prompts_of(seeds) == [prompt_of(seed) for seed in seeds]
    x, sigma = unit_noise(seeds, plain.shape), torch.tensor(0.7)
    asked = shapes([prompt_of(seed) for seed in seeds], 3.0)
    torch.testing.assert_close(plain.for_seeds(seeds)(x, sigma), asked.for_seeds(range(12))(x, sigma))
    digests = [conditions_digest(model, [0, 1]) for model in (plain, guided, shapes(ASKED))]
    assert len(set(digests)) == 3 and digests[1] == conditions_digest(guided, [3, 4])


def test_guidance_is_the_formula_in_one_network_call_without_reading_prompts_again(guided: PipelineModel) -> None:
    seeds, sigma, pipe = [0, 1, 2], torch.tensor(0.6), guided.pipe
    x, calls = unit_noise(seeds, guided.shape), []
    parts = [pipe.transformer, pipe.text_encoder, pipe.text_encoder_2]
    handles = [part.register_forward_hook(lambda module, *_: calls.append(module)) for part in parts]
    fan = guided.for_seeds(seeds)(x.repeat_interleave(2, 0), sigma)
    for handle in handles:
        handle.remove()
    assert calls == [pipe.transformer]

    def denoised(texts: list[str]) -> Tensor:
        hidden, _, pooled, _ = pipe.encode_prompt(
            texts, None, None, do_classifier_free_guidance=False, max_sequence_length=0
        )
        assert hidden.shape == (3, 10, 80) and pooled.shape == (3, 80)
        return x - sigma * pipe.transformer(x, hidden, pooled, 1000 * sigma.expand(3)).sample

    free, bound = denoised([""] * 3), denoised(ASKED)
    wanted = free + 3.0 * (bound - free)
    torch.testing.assert_close(fan, wanted.repeat_interleave(2, 0), rtol=0, atol=2e-5)
    torch.testing.assert_close(shapes(ASKED).for_seeds(seeds)(x, sigma), bound, rtol=0, atol=2e-5)


def test_files_are_small_and_hold_half_precision(pipe: Any) -> None:  # noqa: ANN401
    assert sum(path.stat().st_size for path in MODEL_FOLDER.rglob("*") if path.is_file()) <= 6_000_000
    for name in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        (file,) = (MODEL_FOLDER / name).glob("*.safetensors")
        loaded = pipe.components[name].state_dict()
        with safe_open(str(file), "pt") as stored:
            for key in stored.keys():  # noqa: SIM118 - not a mapping
                value = stored.get_tensor(key)
                assert value.dtype == torch.float16 and loaded[key].dtype == torch.float32
                assert torch.equal(value.float(), loaded[key]), key
    assert not any(p.requires_grad for p in pipe.transformer.parameters()) and not pipe.transformer.training


def test_autoencoder_is_the_identity_on_the_worlds_pictures(pipe: Any, guided: PipelineModel) -> None:  # noqa: ANN401
    pictures = render(ASKED, torch.Generator().manual_seed(0))
    latents = pipe.vae.encode(2 * pictures - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    torch.testing.assert_close(latents, 2 * (2 * pictures - 1), rtol=0, atol=1e-3)
    torch.testing.assert_close(guided.for_seeds([0, 1, 2]).decode(latents), pictures, rtol=0, atol=1e-3)


def test_result_file_has_the_accuracy_of_these_files(pipe: Any) -> None:  # noqa: ANN401
    result = json.loads(RESULT.read_text())
    assert result["network"] == json.loads((MODEL_FOLDER / "training.json").read_text())
    record = result["network"]["record"]
    assert record[-1]["step"] == result["network"]["config"]["iterations"] and record[-1]["loss"] < 0.15
    accuracy, asked = result["accuracy"], kinds()
    assert {kind: row["prompts"] for kind, row in accuracy.items()} == {kind: len(asked[kind]) for kind in asked}
    assert accuracy["one object"]["all"] >= 0.95
    assert accuracy["two objects"]["all"] >= 0.85 and accuracy["held-out combinations"]["all"] >= 0.85
    chosen = [*asked["one object"], *asked["held-out combinations"][:29]]
    shown = verify(paint(pipe, chosen, range(40), 20, 3.0), chosen)
    assert float(shown.all.mean()) >= 0.85 and float(shown.graded.mean()) >= 0.95  # at fewer steps


def test_hostile_conditions_are_refused() -> None:
    for options, message in [
        (ModelOptions(prompt=("a purple cross",)), "'purple' is no colour"),
        (ModelOptions(prompt=("a red cross", "cross")), "none of this world"),
        (ModelOptions(labels=(3,)), "has no such option"),
        (ModelOptions(negative_prompt="a red cross"), "has no such option"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_model("shapes", options)


def test_commands_take_it_with_prompts_and_guidance(run: Run, tmp_path: Path) -> None:
    words = ["sample", "--model", "shapes", "--guidance", "3", "--rule", "dpmpp2", "--calls", "10", "--batch", "4"]
    assert run(*words, "-n", "6", "--prompt", *ASKED[:2], "--out", tmp_path)[0] == cli.OK
    with np.load(tmp_path / "samples.npz") as kept:
        shown = torch.from_numpy(kept["samples"]).permute(0, 3, 1, 2) / 255
    assert float(verify(shown, ASKED[:2] * 3).all.mean()) == 1
