"""enable, disable and summary in the company of everything else that people do to a pipeline."""

from __future__ import annotations

import copy
import dataclasses
import gc
import weakref
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import tiny_pipelines
import torch
from test_families import TABLES, assert_same, states_and_rows, table_for
from tiny_pipelines import PROMPTS, arguments, build, network, run
from torch import Tensor

import epd
from epd.pipelines.enable import on_states

SMALL: dict[str, Any] = {"prompt": list(PROMPTS[:2]), "output_type": "latent", "return_dict": False}


def seeds() -> dict[str, Any]:
    return {"generator": [torch.Generator().manual_seed(i) for i in range(2)]}


def picture(channels: int = 3, seed: int = 3) -> Tensor:
    return torch.rand(2, channels, 64, 64, generator=torch.Generator().manual_seed(seed))


def both(pipe: Any, table: epd.Table, call: Callable[[], Any]) -> tuple[Tensor, list[int]]:  # noqa: ANN401
    """The result with fans in one call, which is that with single calls; and the rows of the network's calls."""
    rows: list[int] = []

    def count(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows.append(len(args[0] if args else kwargs["sample"]))

    results = []
    for parallel in (False, True):
        epd.enable(pipe, table, parallel=parallel)
        rows.clear()
        handle = network(pipe).register_forward_pre_hook(count, with_kwargs=True)
        with torch.no_grad():
            results.append(torch.as_tensor(call()[0]))
        handle.remove()
    epd.disable(pipe)
    assert_same(results[1], results[0])
    return results[1], rows


def variant(kind: Any, **changes: Any) -> Any:  # noqa: ANN401
    """Another pipeline of Stable Diffusion's tiny components."""
    components = build("sd").components
    pipe = kind(**{**components, **changes}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_like(parameters: Any, scale: float = 0.1) -> None:  # noqa: ANN401
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in parameters:
            p.copy_(torch.randn(p.shape, generator=generator) * scale)


@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize("kind", ["epd", "one-call with afs"])
def test_controlnet_is_asked_for_every_point(kind: str, guess: bool) -> None:
    net = diffusers.ControlNetModel.from_unet(build("sd").unet, conditioning_embedding_out_channels=(8, 16, 16, 16))
    random_like((p for p in net.parameters() if not p.any()), 1.0)
    pipe = variant(diffusers.StableDiffusionControlNetPipeline, controlnet=net.eval())
    rows: list[int] = []
    handle = net.register_forward_hook(lambda module, args, out: rows.append(len(out[1])))
    call = {**SMALL, "num_inference_steps": 4, "guess_mode": guess}
    controlled, unet_rows = both(pipe, table_for("sd", kind), lambda: pipe(**call, image=picture(), **seeds()))
    other, _ = both(pipe, table_for("sd", kind), lambda: pipe(**call, image=picture(seed=4), **seeds()))
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
    call = {**SMALL, "num_inference_steps": 4}
    one, rows = both(pipe, table_for("sd", "epd"), lambda: pipe(**call, ip_adapter_image_embeds=embeds, **seeds()))
    two, _ = both(pipe, table_for("sd", "epd"), lambda: pipe(**call, ip_adapter_image_embeds=[-embeds[0]], **seeds()))
    assert rows == [4, 12] * 4
    assert not torch.allclose(one, two, atol=1e-3)


def test_lora() -> None:
    from peft import LoraConfig

    pipe, table = build("sd"), table_for("sd", "epd")
    epd.enable(pipe, table)
    without = run(pipe, "sd", 4)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    random_like(p for n, p in pipe.unet.named_parameters() if "lora_B" in n)
    with_adapter, _ = both(pipe, table, lambda: pipe(**arguments("sd", 4)))
    assert not torch.allclose(with_adapter, without, atol=1e-3)
    pipe.unet.disable_adapters()
    epd.enable(pipe, table)
    assert_same(run(pipe, "sd", 4), without)


@pytest.mark.parametrize("strength", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["epd", "plugin with afs", "memory", "one-call with afs", "mixed"])
def test_image_to_image(kind: str, strength: float) -> None:
    pipe = variant(diffusers.StableDiffusionImg2ImgPipeline)
    table = table_for("sd", kind)
    calls: list[int] = []
    handle = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    for parallel in (True, False):
        epd.enable(pipe, table, parallel=parallel)
        calls.clear()
        with torch.no_grad():
            out = pipe(**SMALL, image=picture(), strength=strength, num_inference_steps=4, **seeds())[0]
        assert torch.isfinite(out).all()
        total = table.depth if parallel else table.nfe
        assert len(calls) == total if strength == 1.0 else 0 < len(calls) < total
    handle.remove()


def test_flux_image_to_image() -> None:
    plain = build("flux")
    pipe = diffusers.FluxImg2ImgPipeline(**{k: v for k, v in plain.components.items() if k in ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")})  # fmt: skip # noqa: E501
    pipe.set_progress_bar_config(disable=True)
    epd.enable(pipe, table_for("flux", "one-call with afs"))
    call = {**SMALL, "height": 64, "width": 64, "max_sequence_length": 16, "num_inference_steps": 4, "strength": 0.5}
    with torch.no_grad():
        out = pipe(**call, image=picture(), **seeds())[0]
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("kind", ["epd", "plugin with afs", "one-call with afs"])
def test_inpainting_keeps_what_it_was_given(kind: str, channels: int) -> None:
    pipe = variant(diffusers.StableDiffusionInpaintPipeline, unet=build("sd", in_channels=channels).unet)
    mask = torch.zeros(2, 1, 64, 64)
    mask[..., 32:] = 1
    epd.enable(pipe, table_for("sd", kind))
    assert epd.summary(pipe).placement == "bare"
    with pytest.warns(UserWarning) if "afs" in kind and "one" not in kind else torch.no_grad():
        out = pipe(**SMALL, image=picture(), mask_image=mask, num_inference_steps=4, **seeds())[0]
    assert torch.isfinite(out).all()
    if channels == 4:
        latents = pipe.vae.encode(2 * picture() - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
        assert out[..., :3].sub(latents[..., :3]).abs().max() < 1


def test_pipelines_of_the_same_components_share_the_solver() -> None:
    pipe = epd.enable(build("sd"), table_for("sd", "epd"))
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    with torch.no_grad():
        assert torch.isfinite(other(**SMALL, image=picture(), num_inference_steps=4, **seeds())[0]).all()
    before = run(pipe, "sd", 4)
    epd.disable(pipe)
    assert not network(pipe)._forward_pre_hooks
    epd.enable(pipe, table_for("sd", "epd"))
    assert torch.equal(run(pipe, "sd", 4), before)


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
def test_compiled_networks_have_two_graphs(name: str) -> None:
    import torch._dynamo
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    pipe, table = build(name), table_for(name, "epd")
    plain, _ = states_and_rows(epd.enable(pipe, table), name, 4)
    epd.disable(pipe)
    counter, part = CompileCounter(), "unet" if name == "sd" else "transformer"
    setattr(pipe, part, torch.compile(network(pipe), backend=counter))
    epd.enable(pipe, table)
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        compiled = run(pipe, name, 4)
    assert counter.frame_count == 2
    assert not torch._dynamo.utils.counters["graph_break"]
    assert_same(compiled, plain)
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

    def made() -> Any:  # noqa: ANN401
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


@pytest.mark.parametrize("kind", ["epd", "plugin with afs", "one-call with afs", "mixed"])
@pytest.mark.parametrize("parallel", [True, False])
def test_callbacks(kind: str, parallel: bool) -> None:
    pipe, table = build("sd"), table_for("sd", kind)
    epd.enable(pipe, table, parallel=parallel)
    everything: list[Tensor] = []
    states: list[tuple[int, Tensor]] = []

    def watch(pipe: object, index: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
        everything.append(kwargs["latents"])
        return {}

    def see(pipe: object, step: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
        states.append((step, kwargs["latents"].clone()))
        return {"latents": kwargs["latents"]}

    plain = run(pipe, "sd", 4, callback_on_step_end=watch)
    assert torch.equal(run(pipe, "sd", 4, callback_on_step_end=on_states(see)), plain)
    assert [n for n, _ in states] == [0, 1, 2, 3]
    assert {len(x) for _, x in states} == {2}
    assert torch.equal(states[-1][1], plain)
    for index, state in zip(epd.summary(pipe).states, (everything[i] for i in epd.summary(pipe).states), strict=True):
        assert len(state) == 2, index

    def change(pipe: object, step: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"latents": kwargs["latents"] + (step == 1)}

    assert not torch.allclose(run(pipe, "sd", 4, callback_on_step_end=on_states(change)), plain, atol=0.1)
    epd.disable(pipe)
    indices: list[int] = []
    run(pipe, "sd", 3, callback_on_step_end=on_states(lambda pipe, i, t, kwargs: indices.append(i) or {}))
    assert indices == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sd", "flux", "wan"])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    pipe = build(name).to(dtype)
    epd.enable(pipe, table_for(name, "epd"))
    out = run(pipe, name, 4)
    assert torch.isfinite(out.float()).all()
    full = run(epd.enable(build(name), table_for(name, "epd")), name, 4)
    assert_same(out.float(), full.float(), 0.1)


def test_enable_again_and_disable_twice() -> None:
    pipe, fresh = build("sd"), build("sd")
    stock = pipe.scheduler
    for kind in ("epd", "memory", "memory"):
        assert epd.enable(pipe, table_for("sd", kind)) is pipe
        assert len(network(pipe)._forward_pre_hooks) == 1
    assert torch.equal(run(pipe, "sd", 4), run(epd.enable(fresh, table_for("sd", "memory")), "sd", 4))
    for _ in range(2):
        assert epd.disable(pipe).scheduler is stock
    assert not network(pipe)._forward_pre_hooks


def test_a_scheduler_that_was_put_in_since_stays() -> None:
    pipe = epd.enable(build("sd"), table_for("sd", "epd"))
    pipe.scheduler = other = diffusers.EulerDiscreteScheduler(**tiny_pipelines.BETAS)
    run(pipe, "sd", 3)  # the hook has nothing to say to it
    assert not epd.summary(pipe).enabled
    epd.disable(pipe)
    assert pipe.scheduler is other
    assert not network(pipe)._forward_pre_hooks


def test_a_loaded_scheduler_brings_its_table() -> None:
    pipe, table = build("sd"), table_for("sd", "epd")
    pipe.scheduler = mine = epd.EPDScheduler.from_table(table, pipe.scheduler.config)
    bare = run(pipe, "sd", 4)
    epd.enable(pipe)
    assert epd.summary(pipe).placement == "batched"
    assert_same(run(pipe, "sd", 4), bare)
    assert epd.disable(pipe).scheduler is mine
    with pytest.raises(ValueError, match="DDIMScheduler, brings no table"):
        epd.enable(build("sd"))


def test_the_network_by_itself_is_untouched() -> None:
    """Between runs the network may be called by anybody, for instance by epd.from_pipeline."""
    pipe = build("sd")
    x = {"sample": torch.ones(3, 4, 8, 8), "timestep": torch.tensor(5.0), "encoder_hidden_states": torch.ones(3, 7, 32)}
    before = pipe.unet(**x).sample
    epd.enable(pipe, table_for("sd", "plugin with afs"))
    assert torch.equal(pipe.unet(**x).sample, before)
    run(pipe, "sd", 4)
    assert torch.equal(pipe.unet(**x).sample, before)


def test_an_interrupted_run_leaves_nothing_behind() -> None:
    pipe = epd.enable(build("sd"), table_for("sd", "epd"))
    expected = run(pipe, "sd", 4)

    def stop(pipe: Any, index: int, timestep: object, kwargs: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pipe, "sd", 4, callback_on_step_end=stop)
    assert torch.equal(run(pipe, "sd", 4), expected)


def test_summary() -> None:
    pipe = build("sd")
    assert str(epd.summary(pipe)) == "DDIMScheduler; no learned solver is enabled"
    epd.enable(pipe, table_for("sd", "plugin with afs"))
    out = epd.summary(pipe)
    assert (out.steps, out.depth, out.nfe, out.width, out.placement) == (4, 7, 15, 3, "batched")
    assert (out.states, out.networks) == ((0, 2, 4, 6), ("unet",))
    assert "4 steps, 7 sequential network calls of up to 3 rows" in str(out)
    assert epd.summary(epd.enable(pipe, table_for("sd", "one-call with afs"))).states == (3,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": 3.0}, "guidance_scale = 7.5, but the table was learned at 3"),
        ({"resolution": (512, 512)}, r"\(64, 64\) pixels, but the table was learned at \(512, 512\)"),
        ({"prediction": "v_prediction"}, "'v_prediction', this network's is 'epsilon'"),
        ({"model": "somebody/else"}, "learned for 'somebody/else', this pipeline is 'me/mine'"),
    ],
)
def test_a_table_of_another_setting_is_told_apart(changes: dict[str, Any], message: str) -> None:
    pipe = build("sd")
    pipe.register_to_config(_name_or_path="me/mine")
    table = dataclasses.replace(table_for("sd", "epd"), provenance=epd.Provenance(**changes))
    with pytest.warns(UserWarning, match=message):
        epd.enable(pipe, table)
        run(pipe, "sd", 4)
    run(pipe, "sd", 4)  # once


def test_what_cannot_work() -> None:
    other = dataclasses.replace(table_for("sd", "epd"), provenance=epd.Provenance(path="ve"))
    with pytest.raises(ValueError, match="learned on the path 've', this pipeline's is 'flow'"):
        epd.enable(build("sd3"), other)
    with pytest.warns(UserWarning, match="starts at sigma 14, but this network was trained up to"):
        epd.enable(
            variant(
                diffusers.StableDiffusionPipeline,
                scheduler=diffusers.DDIMScheduler(beta_end=0.01, steps_offset=1, clip_sample=False),
            ),
            other,
        )
    with pytest.raises(epd.TableError, match="no published table is named"):
        epd.enable(build("sd"), "no-such-table")
    pipe = build("sd")
    with pytest.raises(ValueError, match="begin_index = 25 is beyond"), pytest.warns(UserWarning):
        img2img = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        epd.enable(img2img, table_for("sd", "epd"))
        img2img(**SMALL, image=picture(), num_inference_steps=50, strength=0.5)


def test_a_published_table_by_name() -> None:
    pipe = build("sd")
    epd.enable(pipe, "sd15-rdpo-10x2")
    assert epd.summary(pipe).steps == len(epd.named_table("sd15-rdpo-10x2").sigmas) - 1  # type: ignore[arg-type]


def test_pipelines_are_not_kept_alive() -> None:
    pipe = epd.enable(build("sd"), table_for("sd", "epd"))
    reference = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert reference() is None


def test_schedulers_can_be_copied_between_runs() -> None:
    pipe = epd.enable(build("sd"), table_for("sd", "epd"))
    expected = run(pipe, "sd", 4)
    pipe.scheduler = twin = copy.deepcopy(pipe.scheduler)
    twin.placement = "bare"  # the hook is the original's
    assert_same(run(pipe, "sd", 4), expected)
