"""enable in the company of everything else that people do to a pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
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
from helpers.tiny_pipelines import PROMPTS, arguments, build, calls_of, diffusers, network, run
from torch import Tensor

import epd


def random_like(parameters: Any, scale: float = 0.1) -> None:  # noqa: ANN401
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in parameters:
            p.copy_(torch.randn(p.shape, generator=generator) * scale)


@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize("kind", ["epd", "one-call with afs", "dense", "dense fan"])
def test_controlnet_is_asked_for_every_point(kind: str, guess: bool) -> None:
    net = diffusers.ControlNetModel.from_unet(build("sd").unet, conditioning_embedding_out_channels=(8, 16, 16, 16))
    random_like((p for p in net.parameters() if not p.any()), 1.0)
    pipe = variant(diffusers.StableDiffusionControlNetPipeline, controlnet=net.eval())
    rows: list[int] = []
    handle = net.register_forward_hook(lambda module, args, out: rows.append(len(out[1])))
    call = {**SMALL, "guess_mode": guess}

    def made(seed: int) -> tuple[Tensor, list[int]]:
        image = picture(seed=seed)
        table = table_for("sd", kind)
        return both(pipe, table, lambda n: pipe(**call, num_inference_steps=n, image=image, **seeds()))

    (controlled, unet_rows), (other, _) = made(3), made(4)
    handle.remove()
    assert not torch.allclose(controlled, other, atol=1e-3)
    assert unet_rows == [4 * width for width in TABLES[kind][1]]
    assert rows[-len(unet_rows) :] == [(2 if guess else 4) * width for width in TABLES[kind][1]]


def test_ip_adapter() -> None:
    pipe = build("sd")
    state: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    names = [n for n in pipe.unet.attn_processors if n.endswith("attn2.processor")]
    for i, name in enumerate(names):
        width = 16 if "down_blocks.0" in name or "up_blocks.1" in name else 32
        for kind in ("k", "v"):
            state[f"{2 * i + 1}.to_{kind}_ip.weight"] = torch.randn(width, 32, generator=generator)
    image = {"proj.weight": torch.randn(128, 8, generator=generator), "proj.bias": torch.zeros(128)}
    image |= {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
    pipe.unet._load_ip_adapter_weights([{"image_proj": image, "ip_adapter": state}])
    embeds = [torch.randn(2, 1, 8, generator=generator)]  # without and with the image

    def made(images: list[Tensor]) -> tuple[Tensor, list[int]]:
        call = {**SMALL, "ip_adapter_image_embeds": images}
        return both(pipe, table_for("sd", "epd"), lambda n: pipe(**call, num_inference_steps=n, **seeds()))

    (one, rows), (two, _) = made(embeds), made([-embeds[0]])
    assert rows == [4, 12] * 4
    assert not torch.allclose(one, two, atol=1e-3)


def test_lora() -> None:
    from peft import LoraConfig

    pipe, table = build("sd"), table_for("sd", "epd")
    epd.enable(pipe, table)
    without = run(pipe, "sd", 4)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    random_like(p for n, p in pipe.unet.named_parameters() if "lora_B" in n)
    with_adapter, _ = both(pipe, table, lambda n: pipe(**arguments("sd", n)))
    assert not torch.allclose(with_adapter, without, atol=1e-3)
    pipe.unet.disable_adapters()
    epd.enable(pipe, table)
    assert_same(run(pipe, "sd", 4), without)


@pytest.mark.parametrize("strength", [0.34, 0.5, 1.0])
@pytest.mark.parametrize("kind", TABLES)
def test_image_to_image(kind: str, strength: float) -> None:
    pipe = variant(diffusers.StableDiffusionImg2ImgPipeline)
    table = table_for("sd", kind)
    made: list[int] = []
    handle = pipe.unet.register_forward_hook(lambda *_: made.append(1))
    for parallel in (True, False):
        epd.enable(pipe, table, parallel=parallel)
        made.clear()
        with torch.no_grad():
            call = {**SMALL, "num_inference_steps": calls_of(pipe), "strength": strength}
            out = pipe(**call, image=picture(), **seeds())[0]
        assert torch.isfinite(out).all()
        total = table.depth if parallel else table.nfe
        assert len(made) == int(strength * total)
    handle.remove()


def test_flux_image_to_image() -> None:
    plain = build("flux")
    pipe = diffusers.FluxImg2ImgPipeline(**plain.components)
    pipe.set_progress_bar_config(disable=True)
    epd.enable(pipe, table_for("flux", "one-call with afs"))
    call = {**SMALL, "height": 64, "width": 64, "max_sequence_length": 16, "num_inference_steps": 4, "strength": 0.5}
    with torch.no_grad():
        out = pipe(**call, image=picture(), **seeds())[0]
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("kind", ["epd", "plugin with afs", "one-call with afs", "dense", "dense fan"])
def test_inpainting_keeps_what_it_was_given(kind: str, channels: int) -> None:
    pipe = variant(diffusers.StableDiffusionInpaintPipeline, unet=build("sd", in_channels=channels).unet)
    mask = torch.zeros(2, 1, 64, 64)
    mask[..., 32:] = 1
    table = table_for("sd", kind)
    epd.enable(pipe, table)
    assert epd.summary(pipe).placement == "bare"
    call = {**SMALL, "num_inference_steps": calls_of(pipe), "mask_image": mask}
    with pytest.warns(UserWarning) if table.moves_first_call else torch.no_grad():
        out = pipe(**call, image=picture(), **seeds())[0]
    assert torch.isfinite(out).all()
    if channels == 4:
        latents = pipe.vae.encode(2 * picture() - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
        assert out[..., :3].sub(latents[..., :3]).abs().max() < 1


@pytest.mark.parametrize(
    ("name", "way"),
    [pytest.param("sd", "before", marks=pytest.mark.slow), ("sd3", "before"), ("flux", "before"),
     # Where the hook comes to stand is a matter of the way alone: one network is enough for the others.
     pytest.param("sd3", "after", marks=pytest.mark.slow), pytest.param("sd3", "in place", marks=pytest.mark.slow)],
)  # fmt: skip
def test_compiled_networks_have_two_graphs(name: str, way: str) -> None:
    import torch._dynamo
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    pipe, table, counter = build(name), table_for(name, "epd"), CompileCounter()
    expected = run(epd.enable(build(name), table), name, 4)
    if way != "before":
        epd.enable(pipe, table)
    if way == "in place":
        network(pipe).compile(backend=counter)
    else:
        setattr(pipe, "unet" if name == "sd" else "transformer", torch.compile(network(pipe), backend=counter))
    if way == "before":
        epd.enable(pipe, table)
    for _ in range(2):
        assert_same(run(pipe, name, 4), expected)
    assert counter.frame_count == 2
    assert not torch._dynamo.utils.counters["graph_break"]
    epd.disable(pipe)
    assert not network(pipe)._forward_pre_hooks
    torch._dynamo.reset()


def offloaded(pipe: Any, way: str) -> None:  # noqa: ANN401
    """The hooks that offloading installs, with the CPU in the accelerator's place."""
    import accelerate
    from diffusers.hooks.group_offloading import apply_group_offloading

    net = network(pipe)
    if way == "model":
        accelerate.cpu_offload_with_hook(net, execution_device="cpu")
    elif way == "sequential":
        accelerate.cpu_offload(net, execution_device=torch.device("cpu"))
    else:
        apply_group_offloading(net, onload_device=torch.device("cpu"), offload_type=way, num_blocks_per_group=1)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("way", ["model", "sequential", "leaf_level", "block_level"])
@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_offloading_hooks(name: str, way: str, order: str) -> None:
    table = table_for(name, "plugin with afs")
    expected = run(epd.enable(build(name), table), name, 4)
    pipe = build(name)
    if order == "before":
        offloaded(pipe, way)
    epd.enable(pipe, table)
    if order == "after":
        offloaded(pipe, way)
    assert_same(run(pipe, name, 4), expected)
    epd.disable(pipe)
    assert_same(run(pipe, name, 4), run(build(name), name, 4))


@pytest.mark.parametrize("changes", [{"guidance_rescale": 0.7}, {"num_images_per_prompt": 2}])
def test_arguments_of_the_call(changes: dict[str, Any]) -> None:
    pipe = build("sd")
    call = {**arguments("sd", 4), **changes}
    if "num_images_per_prompt" in changes:
        call["generator"] = [torch.Generator() for _ in range(4)]

    def made(number: int) -> Any:  # noqa: ANN401
        call["num_inference_steps"] = number
        for i, generator in enumerate(call["generator"]):
            generator.manual_seed(i)
        return pipe(**call)

    out, rows = both(pipe, table_for("sd", "epd"), made)
    assert rows == [2 * len(out), 6 * len(out)] * 4


def test_true_guidance_in_flux() -> None:
    pipe = build("flux")
    call = {"negative_prompt": ["snow", "fox"], "true_cfg_scale": 3.0}
    epd.enable(pipe, table_for("flux", "epd"))
    batched, rows = states_and_rows(pipe, "flux", 4, **call)
    assert rows == [2, 2, 6, 6] * 4
    epd.enable(pipe, table_for("flux", "epd"), parallel=False)
    assert_same(batched, states_and_rows(pipe, "flux", 4, **call)[0])


def test_positions_that_look_like_rows_are_left_alone() -> None:
    pipe = build("flux")  # 16 picture tokens, 16 samples
    epd.enable(pipe, table_for("flux", "epd"))
    batched, _ = states_and_rows(pipe, "flux", 4, **arguments("flux", 4, batch=16))
    epd.enable(pipe, table_for("flux", "epd"), parallel=False)
    assert_same(batched, states_and_rows(pipe, "flux", 4, **arguments("flux", 4, batch=16))[0])


def test_learned_sigmas_of_time_per_token() -> None:
    """Wan 2.2 tells its network one time per token."""
    pipe = build("wan")
    pipe.register_to_config(expand_timesteps=True)
    epd.enable(pipe, table_for("wan", "epd"))
    batched, _ = states_and_rows(pipe, "wan", 4)
    epd.enable(pipe, table_for("wan", "epd"), parallel=False)
    assert_same(batched, states_and_rows(pipe, "wan", 4)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sd", "flux", "wan"])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    pipe = build(name).to(dtype)
    epd.enable(pipe, table_for(name, "epd"))
    out = run(pipe, name, 4)
    assert torch.isfinite(out.float()).all()
    full = run(epd.enable(build(name), table_for(name, "epd")), name, 4)
    assert_same(out.float(), full.float(), 0.1)


def test_pixart_sigma() -> None:
    parts = build("pixart").components
    pipe = diffusers.PixArtSigmaPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    epd.enable(pipe, table_for("pixart", "epd"))
    batched, rows = states_and_rows(pipe, "pixart", 4)
    assert rows == [4, 12] * 4
    epd.enable(pipe, table_for("pixart", "epd"), parallel=False)
    assert_same(batched, states_and_rows(pipe, "pixart", 4)[0])


def test_video_to_video_does_not_say_where_it_begins() -> None:
    pipe = diffusers.AnimateDiffVideoToVideoPipeline(**build("animatediff").components)
    pipe.set_progress_bar_config(disable=True)
    call = {**SMALL, "prompt": PROMPTS[0], "height": 64, "width": 64, "strength": 0.5}
    for kind in ("plugin with afs", "one-call with afs"):
        for parallel in (True, False):
            epd.enable(pipe, table_for("animatediff", kind), parallel=parallel)
            with torch.no_grad():
                call["num_inference_steps"] = calls_of(pipe)
                out = pipe(**call, video=list(picture()), generator=torch.Generator().manual_seed(0))[0]
            assert torch.isfinite(out).all()
