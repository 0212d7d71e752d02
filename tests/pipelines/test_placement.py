"""Where the points of a fan are evaluated: every pipeline that runs is asked, and all placements agree."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from helpers.list_and_packed_pipelines import embeddings, qwen_image, sounding, z_image
from helpers.pipeline_tables import (
    SMALL,
    TABLES,
    assert_same,
    both,
    picture,
    seeds,
    states_and_rows,
    table_for,
    variant,
)
from helpers.tiny_pipelines import build, calls_of, diffusers, run
from torch import Tensor

import epd
from epd.denoisers.arguments import second_state


def mask() -> Tensor:
    out = torch.zeros(2, 1, 64, 64)
    out[..., 32:] = 1
    return out


@pytest.mark.parametrize("kind", ["epd", "one-call with afs", "mixed"])
def test_inpainting_made_from_an_enabled_pipeline_equals_one_of_its_own(kind: str) -> None:
    call = {**SMALL, "image": picture(), "mask_image": mask()}
    pipe = epd.enable(variant(diffusers.StableDiffusionPipeline), table_for("sd", kind))
    made = run(pipe, "sd", 4)
    shared = diffusers.AutoPipelineForInpainting.from_pipe(pipe)
    shared.set_progress_bar_config(disable=True)
    own = epd.enable(variant(diffusers.StableDiffusionInpaintPipeline), table_for("sd", kind))
    with torch.no_grad():
        results = [pipe(**call, num_inference_steps=calls_of(pipe), **seeds())[0] for pipe in (shared, own)]
    assert torch.equal(*results)
    assert torch.equal(run(pipe, "sd", 4), made)
    assert epd.summary(pipe).placement == "batched"


@pytest.mark.parametrize("parallel", [True, False])
def test_image_to_image_made_from_an_enabled_pipeline_shares_its_calls(parallel: bool) -> None:
    pipe = epd.enable(variant(diffusers.StableDiffusionPipeline), table_for("sd", "epd"), parallel=parallel)
    shared = diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
    shared.set_progress_bar_config(disable=True)
    rows: list[int] = []
    handle = pipe.unet.register_forward_hook(lambda module, args, out: rows.append(len(out[0])))
    call = {**SMALL, "image": picture(), "strength": 1.0}
    with torch.no_grad():
        made = shared(**call, num_inference_steps=calls_of(shared), **seeds())[0]
    handle.remove()
    assert rows == ([4, 12] * 4 if parallel else [4] * 16)
    own = epd.enable(variant(diffusers.StableDiffusionImg2ImgPipeline), table_for("sd", "epd"), parallel=False)
    with torch.no_grad():
        assert_same(made, own(**call, num_inference_steps=calls_of(own), **seeds())[0])


def test_a_controlnet_that_was_not_hooked_is_not_given_a_fan() -> None:
    net = diffusers.ControlNetModel.from_unet(build("sd").unet, conditioning_embedding_out_channels=(8, 16, 16, 16))
    pipe = epd.enable(build("sd"), table_for("sd", "epd"))
    parts = {**pipe.components, "controlnet": net.eval()}
    made = []
    for enabled in (False, True):
        shared = diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
        shared.set_progress_bar_config(disable=True)
        if enabled:
            epd.enable(shared, table_for("sd", "epd"))
        with torch.no_grad():
            number = calls_of(shared)
            made.append(shared(**SMALL, image=picture(), num_inference_steps=number, **seeds())[0])
    assert_same(*made)


@pytest.mark.parametrize("kind", ["epd", "one-call with afs"])
def test_perturbed_attention_guidance_is_batched(kind: str) -> None:
    """It repeats the latents as often as its prompts have more rows, which is why they must stay one per sample."""
    pipe = variant(diffusers.StableDiffusionPAGPipeline, pag_applied_layers=["mid"])
    def call(number: int, scale: float) -> Any:  # noqa: ANN401 - a pipeline's output
        return pipe(**SMALL, num_inference_steps=number, pag_scale=scale, **seeds())

    made, rows = both(pipe, table_for("sd", kind), lambda number: call(number, 3.0))
    assert rows == [6 * width for width in TABLES[kind][1]]
    plain, _ = both(pipe, table_for("sd", kind), lambda number: call(number, 0.0))
    assert not torch.allclose(made, plain, atol=1e-2)


def cached(pipe: Any, way: str) -> None:  # noqa: ANN401
    from diffusers.hooks.first_block_cache import FirstBlockCacheConfig, apply_first_block_cache
    from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastConfig

    network = pipe.transformer
    if way == "attention broadcast":
        network.enable_cache(
            PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=2,
                spatial_attention_timestep_skip_range=(-1, 1001),
                current_timestep_callback=lambda: 500,
            )
        )
    elif way == "first block":
        network.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    else:
        apply_first_block_cache(network, FirstBlockCacheConfig(threshold=0.2))


@pytest.mark.parametrize(
    ("way", "when"),
    [
        *(("attention broadcast", when) for when in ("before", "after")),
        *(("first block", when) for when in ("before", "after")),
        ("first block, applied", "before"),  # diffusers itself does not run it where the pipeline ran before
    ],
)
def test_an_active_cache_falls_back_to_serial_and_says_so_once(way: str, when: str) -> None:
    made = []
    for parallel in (True, False):
        pipe = build("flux")
        if when == "before":
            cached(pipe, way)
        epd.enable(pipe, table_for("flux", "epd"), parallel=parallel)
        if when == "after":
            run(pipe, "flux", 4)
            cached(pipe, way)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            state, rows = states_and_rows(pipe, "flux", 4)
            run(pipe, "flux", 4)
        made.append(state)
        assert rows == [2] * 16
        assert [str(w.message) for w in said if "cache" in str(w.message)] == (
            ["the points of a fan are evaluated one after another: a cache that is active in the network keeps rows "
             "from call to call"] if parallel else []
        )  # fmt: skip
        assert epd.summary(pipe).placement == "serial"
    assert torch.equal(*made)


def test_a_cache_that_was_switched_off_is_no_obstacle() -> None:
    pipe = epd.enable(build("flux"), table_for("flux", "epd"))
    expected = run(pipe, "flux", 4)
    cached(pipe, "first block")
    pipe.transformer.disable_cache()
    state, rows = states_and_rows(pipe, "flux", 4)
    assert rows == [2, 6] * 4
    assert torch.equal(state, expected)


def made_by(
    pipe: Any, kind: str, call: dict[str, Any], parallel: bool, calls: int | None = None  # noqa: ANN401
) -> tuple[Tensor, list[int]]:
    """The latents, and the rows of the network's calls."""
    pipe.set_progress_bar_config(disable=True)
    epd.enable(pipe, table_for("flux", kind), parallel=parallel)
    rows: list[int] = []

    def count(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows.append(len(args[0] if args else kwargs["hidden_states"]))

    handle = pipe.transformer.register_forward_pre_hook(count, with_kwargs=True)
    size = {"height": 64, "width": 64, "output_type": "latent", "return_dict": False}
    # Z-Image says what guides it when it is called, and how it is guided decides its calls: see below.
    number = calls if calls is not None else calls_of(pipe)
    with torch.no_grad():
        out = pipe(**size, **call, num_inference_steps=number, **seeds())[0]
    handle.remove()
    return out, rows


@pytest.mark.parametrize("kind", TABLES)
def test_packed_patches_are_not_mixed_with_anything(kind: str) -> None:
    """Qwen-Image: 16 channels go in and 4 come out, in patches of 2 x 2."""
    masks = {"prompt_embeds_mask": torch.ones(2, 5).long(), "negative_prompt_embeds_mask": torch.ones(2, 5).long()}
    call = {"prompt_embeds": embeddings(1), "negative_prompt_embeds": embeddings(2), "true_cfg_scale": 3.0, **masks}
    batched, rows = made_by(qwen_image(), kind, call, True)
    assert rows == [2 * width for width in TABLES[kind][1] for _ in range(2)]
    assert_same(batched, made_by(qwen_image(), kind, call, False)[0])
    other = made_by(qwen_image(), kind, {**call, "prompt_embeds": embeddings(3)}, True)[0]
    assert not torch.allclose(batched, other, atol=1e-2)


@pytest.mark.parametrize("guidance", [0.0, 4.0])
@pytest.mark.parametrize("kind", TABLES)
def test_networks_that_take_lists(kind: str, guidance: float) -> None:
    """Z-Image counts the entries of its list to guide: there the points are evaluated one after another."""
    texts = [embeddings(1)[0], embeddings(4, 7)[1]]
    call = {"prompt_embeds": texts, "negative_prompt_embeds": [*embeddings(2)], "guidance_scale": guidance}
    expected, single = made_by(z_image(), kind, call, False)
    assert single == [4 if guidance else 2] * sum(TABLES[kind][1])
    if guidance:
        with pytest.warns(UserWarning, match="guidance counts the entries"):
            batched, rows = made_by(z_image(), kind, call, True, sum(TABLES[kind][1]))
        assert rows == single
    else:
        batched, rows = made_by(z_image(), kind, call, True)
        assert rows == [2 * width for width in TABLES[kind][1]]
    assert_same(batched, expected)
    other = made_by(z_image(), kind, {**call, "prompt_embeds": texts[::-1]}, False)[0]
    assert not torch.allclose(expected, other, atol=1e-2)


@pytest.mark.parametrize("kind", ["epd", "one-call with afs", "mixed"])
def test_a_second_state_is_evaluated_one_point_after_another(kind: str) -> None:
    made = []
    for parallel in (True, False):
        pipe = epd.enable(sounding(), table_for("flux", kind), parallel=parallel)
        assert "'audio_hidden_states' beside" in epd.summary(pipe).note
        made.append(pipe(calls_of(pipe)))
    assert torch.equal(*made)
    # Both states have the same slope function and the same solver: it is that of one state of eight numbers.
    table, network = table_for("flux", kind), pipe.transformer
    noise = torch.cat(torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0)).unbind(), 1)

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        times = 1000 * sigma.float().expand(len(x))
        out = torch.cat(network(x[:, :4], x[:, 4:], times, times), 1)
        return x - sigma.float().reshape(-1, 1) * out

    assert_same(made[0], epd.solve(table.rule(), denoiser, noise, table.sigmas.tolist()))


def test_networks_with_a_second_time_are_recognised() -> None:
    """By their signatures alone: LTX-2, Kandinsky 6, ACE-Step, HunyuanImage; not by times that are conditioning."""
    from diffusers import models

    found = {name: second_state(getattr(models, name).forward) for name in SECOND}
    assert found == SECOND


SECOND = {
    "LTX2VideoTransformer3DModel": "audio_hidden_states",
    "AceStepTransformer1DModel": "timestep_r",
    "HunyuanImageTransformer2DModel": "timestep_r",
    "UNet2DConditionModel": "",
    "CogVideoXTransformer3DModel": "",
    "HiDreamImageTransformer2DModel": "",
    "WanVACETransformer3DModel": "",
    "SD3Transformer2DModel": "",
}
FEW = ("mixed", "dense fan")


@pytest.mark.parametrize(
    ("name", "kind"),  # every layout of calls in one pipeline; in others, whose loops differ, two of them
    [*(("sd3", kind) for kind in TABLES), *((name, kind) for name in ("sd", "flux", "wan") for kind in FEW)],
)
@pytest.mark.parametrize("parallel", [True, False])
def test_a_pipeline_that_is_told_to_stop_has_one_picture_per_sample(name: str, parallel: bool, kind: str) -> None:
    pipe = epd.enable(build(name), table_for(name, kind), parallel=parallel)
    whole, calls = run(pipe, name, 4), epd.summary(pipe).depth
    for last in (0, 1, 2, calls - 1):
        out, seen = stopped(pipe, name, last)
        assert len(seen) == last + 1
        assert out.shape == whole.shape
        assert name == "wan" or torch.equal(out, seen[-1])
    assert torch.equal(out, whole)


def stopped(pipe: Any, name: str, last: int) -> tuple[Tensor, list[Tensor]]:  # noqa: ANN401
    """The result of a run that a callback ends at this call, and the latents that it saw."""
    seen: list[Tensor] = []

    def stop(pipe: Any, index: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
        pipe._interrupt = index == last
        seen.append(kwargs["latents"])
        return {}

    return run(pipe, name, 4, callback_on_step_end=stop), seen
