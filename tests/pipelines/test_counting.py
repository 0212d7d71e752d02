"""`num_inference_steps` counts network calls: what a pipeline derives from it lies where the run says."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers.pipeline_families import FAMILIES, SEEDS
from helpers.pipeline_tables import assert_same, table_for
from helpers.tiny_pipelines import build, diffusers, gemma, gemma_tokenizer, run, vae
from torch import Tensor

import epd
from epd.denoisers.noise import unit_noise
from epd.pipelines.frames import frame_of
from epd.pipelines.scheduler import EPDScheduler, EPDSchedulerOutput

KINDS = ("epd", "plugin with afs", "one-call with afs", "mixed")
Denoise = Callable[[Tensor, Tensor], Tensor]


def solved(table: epd.Table, shape: Sequence[int], denoisers: Sequence[Denoise]) -> Tensor:
    """The table's run in which network call i, a whole fan, is answered by `denoisers[i]`."""
    calls = iter(denoisers)
    with torch.no_grad():
        noise = unit_noise(SEEDS, shape)
        result = epd.solve(table.rule(), lambda x, sigma: next(calls)(x, sigma), noise, table.sigmas.tolist())
    assert next(calls, None) is None
    return result


def advised(pipe: Any) -> int:  # noqa: ANN401
    """What our own warning tells somebody who asks for another number."""
    pipe.scheduler.placement = epd.summary(pipe).placement  # which a run of the pipeline finds out by itself
    with pytest.warns(UserWarning, match="num_inference_steps = 50") as said:
        pipe.scheduler.set_timesteps(50)
    text = str(said.pop(UserWarning).message)
    return int(re.findall(r"pass num_inference_steps=(\d+)", text)[0])


def skip_layers(pipe: Any, scale: float, skipped: bool) -> Denoise:  # noqa: ANN401
    """SD3 with guidance, and with the first block left out of a third prediction, written out."""
    frame, texts = frame_of(pipe.scheduler), FAMILIES["sd3"].call(SEEDS, 1, None)["prompt"]
    with torch.no_grad():
        text, free, pool, free_pool = pipe.encode_prompt(texts, texts, texts, max_sequence_length=16)

    def velocity(x: Tensor, t: Tensor, embeds: tuple[Tensor, Tensor], layers: list[int] | None) -> Tensor:
        rows = (e.repeat_interleave(len(x) // 2, 0) for e in embeds)
        return pipe.transformer(x, *rows, t, skip_layers=layers, return_dict=False)[0]

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        *_, t = frame.precondition(sigma.expand(len(x)))
        with_text, without = (velocity(x, t.float(), e, None) for e in ((text, pool), (free, free_pool)))
        v = without + scale * (with_text - without)
        if skipped:
            v = v + 2.8 * (with_text - velocity(x, t.float(), (text, pool), [0]))
        return x - sigma.float().expand(len(x)).reshape(-1, 1, 1, 1) * v

    return denoise


@pytest.mark.parametrize("kind", KINDS)
def test_sd3_leaves_layers_out_in_its_window(kind: str) -> None:
    pipe, table = build("sd3"), table_for("sd3", kind)
    window = {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 0.7}
    inside = [0.2 * table.depth < i < 0.7 * table.depth for i in range(table.depth)]
    assert 0 < sum(inside) < table.depth
    expected = solved(table, (4, 8, 8), [skip_layers(pipe, 4.0, skipped) for skipped in inside])
    epd.enable(pipe, table)
    made = pipe(**FAMILIES["sd3"].call(SEEDS, advised(pipe), 4.0), **window)[0]
    assert_same(made, expected)


def lumina2() -> Any:  # noqa: ANN401
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = diffusers.Lumina2Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1,
            num_attention_heads=3, num_kv_heads=1, multiple_of=2, scaling_factor=1.0, axes_dim_rope=(4, 2, 2),
            axes_lens=(64, 16, 16), cap_feat_dim=32,
        )  # fmt: skip
        pipe = diffusers.Lumina2Pipeline(
            network.eval(), diffusers.FlowMatchEulerDiscreteScheduler(), vae(), gemma(), gemma_tokenizer()
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("kind", KINDS)
def test_lumina_2_truncates_its_guidance_where_the_ratio_says(kind: str) -> None:
    pipe, family = lumina2(), FAMILIES["sd3"]
    table = table_for("lumina", kind)
    guided, plain = (family.model(pipe, scale).for_seeds(SEEDS) for scale in (4.0, 1.0))
    truncated = [(i + 1) / table.depth > 0.5 for i in range(table.depth)]
    expected = solved(table, guided.shape, [plain if cut else guided for cut in truncated])
    epd.enable(pipe, table)
    made = pipe(**family.call(SEEDS, advised(pipe), 4.0), cfg_trunc_ratio=0.5)[0]
    assert_same(made, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_modular_guider_stops_where_it_says(kind: str) -> None:
    from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance
    from diffusers.modular_pipelines.stable_diffusion_xl.modular_blocks_stable_diffusion_xl import (
        StableDiffusionXLAutoBlocks,
    )

    plain, family, table = build("sdxl"), FAMILIES["sdxl"], table_for("sdxl", kind)
    guided, unguided = (family.model(plain, scale).for_seeds(SEEDS) for scale in (4.0, 1.0))
    inside = [i < int(0.6 * table.depth) for i in range(table.depth)]
    expected = solved(table, guided.shape, [guided if guide else unguided for guide in inside])
    pipe = StableDiffusionXLAutoBlocks().init_pipeline()
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae", "scheduler")
    pipe.update_components(
        **{name: plain.components[name] for name in names}, guider=ClassifierFreeGuidance(guidance_scale=4.0, stop=0.6)
    )
    pipe.set_progress_bar_config(disable=True)
    epd.enable(pipe, table)
    call = family.call(SEEDS, advised(pipe), None)
    del call["return_dict"]
    with torch.no_grad():
        assert_same(torch.as_tensor(pipe(**call, output="images")), expected)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("afs", [True, False])
def test_pixart_in_one_step_gives_the_tables_result(afs: bool, parallel: bool) -> None:
    """Asked for one step, its pipeline takes the denoised state of each call for the next one's."""
    table = epd.Table([14.0, 0.5], [[0.3, 0.7]], [[0.4, 0.6]], afs=afs)  # with afs its fan is the only call
    pipe, family = build("pixart"), FAMILIES["pixart"]
    model = family.model(pipe, 4.0)
    expected = solved(table, model.shape, [model.for_seeds(SEEDS)] * table.depth)
    epd.enable(pipe, table, parallel=parallel)
    made = pipe(**family.call(SEEDS, advised(pipe), 4.0))[0]
    assert_same(made, expected)


@pytest.mark.filterwarnings("ignore:num_inference_steps = 1")
@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_pixart_asked_for_one_step_runs_the_whole_table(kind: str, parallel: bool) -> None:
    pipe, family, table = build("pixart"), FAMILIES["pixart"], table_for("pixart", kind)
    epd.enable(pipe, table, parallel=parallel)
    expected = pipe(**family.call(SEEDS, advised(pipe), 4.0))[0]
    assert torch.equal(pipe(**family.call(SEEDS, 1, 4.0))[0], expected)


@pytest.mark.parametrize("rule", ["heun", "dpm2"])
def test_pixart_in_one_step_of_two_calls_is_that_step(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on from the sample after each call, as if that had been handed to it as the only output."""
    pipe, family = build("pixart"), FAMILIES["pixart"]
    pipe.scheduler = EPDScheduler.from_config(pipe.scheduler.config, rule=rule, final_sigmas_type="sigma_min")
    made, real = pipe(**family.call(SEEDS, 1, 4.0))[0], pipe.scheduler.step

    def step(model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool) -> EPDSchedulerOutput:
        after, original = real(model_output, timestep, sample, return_dict=return_dict)
        last = pipe.scheduler.step_index == len(pipe.scheduler.calls)
        return EPDSchedulerOutput(after, original if last else after)

    monkeypatch.setattr(pipe.scheduler, "step", step)
    assert_same(made, pipe(**family.call(SEEDS, 1, 4.0))[0])


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_number_that_is_advised_is_that_of_the_calls(kind: str, parallel: bool) -> None:
    pipe, table = build("sd"), table_for("sd", kind)
    epd.enable(pipe, table, parallel=parallel)
    calls = table.depth if parallel else table.nfe
    scheduler = pipe.scheduler
    scheduler.placement = epd.summary(pipe).placement
    assert f"call with num_inference_steps = {calls}" in str(epd.summary(pipe))
    scheduler.set_timesteps(calls)  # without a warning
    assert (len(scheduler.timesteps), scheduler.num_inference_steps, scheduler.order) == (calls, calls, 1)
    for other in {table.num_steps, 50} - {calls}:
        with pytest.warns(UserWarning, match=rf"num_inference_steps = {other}, .* pass num_inference_steps={calls},"):
            scheduler.set_timesteps(other)
        assert (len(scheduler.timesteps), scheduler.num_inference_steps, scheduler.order) == (calls, calls, 1)


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # the stock DPM2's
@pytest.mark.parametrize("rule", ["euler", "heun", "dpm2", "ipndm", "dpmpp"])
@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_hand_made_rules_count_steps_as_the_stock_schedulers(name: str, rule: str) -> None:
    pipe = build(name)
    stock = {"heun": diffusers.HeunDiscreteScheduler, "dpm2": diffusers.KDPM2DiscreteScheduler}.get(rule)
    own = EPDScheduler.from_config(pipe.scheduler.config, rule=rule)
    own.set_timesteps(6)
    counts = (len(own.timesteps), own.num_inference_steps, own.order)
    if stock is None:
        assert counts == (6, 6, 1)
    else:
        theirs = stock()
        theirs.set_timesteps(6)
        # A grid that ends above 0, as Stable Diffusion's does, has a second call in its last step, too.
        whole = own.sigmas[-1] > 0
        assert (len(theirs.timesteps), theirs.num_inference_steps, theirs.order) == (11, 6, 2)
        assert counts == (12 if whole else 11, 6, 2)
    own.set_timesteps(sigmas=[0.9, 0.6, 0.2])  # a pipeline counts the entries afterwards
    assert (len(own.timesteps), own.order) == (3 if stock is None else 5, 1)


@pytest.mark.parametrize("parallel", [True, False])
def test_progress_bars_and_callbacks_count_calls(parallel: bool) -> None:
    pipe, table = build("sd"), table_for("sd", "epd")
    epd.enable(pipe, table, parallel=parallel)
    pipe.set_progress_bar_config(disable=False, file=io.StringIO())
    bars: list[Any] = []
    make_bar = pipe.progress_bar
    pipe.progress_bar = lambda **options: bars.append(make_bar(**options)) or bars[-1]
    seen: list[int] = []
    run(pipe, "sd", table.num_steps, callback_on_step_end=lambda pipe, i, t, kwargs: seen.append(i) or {})
    calls = table.depth if parallel else table.nfe
    assert seen == list(range(calls))
    assert [(bar.total, bar.n) for bar in bars] == [(calls, calls)]
