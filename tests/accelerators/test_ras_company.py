"""Region-adaptive sampling beside others: reused slopes, ControlNets, adapters, gradients, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import tiny_pipelines
from helpers.accelerating import traces
from helpers.pipeline_tables import assert_same, table_for
from helpers.tiny_pipelines import build, network, run
from torch import Tensor

import epd
from epd.denoisers.digits import digits

HALF = epd.RAS(0.5, warmup=2)


def test_rows_that_others_leave_out() -> None:
    """Reused slopes of a step are no news: the tokens wait, and what is kept follows what is computed."""
    pipe = epd.enable(build("sd3"), table_for("sd3", "epd"))
    for where in ("fan", "all"):
        epd.accelerate(pipe, epd.Reuse((2,), where))
        expected = run(pipe, "sd3", 4)
        reuse, ras = epd.Reuse((2,), where), epd.RAS(1.0, warmup=1)
        for pair in ((reuse, ras), (ras, reuse)):
            epd.accelerate(pipe, *pair)
            assert torch.equal(run(pipe, "sd3", 4), expected)
        epd.accelerate(pipe, epd.Reuse((2,), where), epd.RAS(0.5, warmup=1))
        with epd.measure(pipe, counts=False) as measured:
            run(pipe, "sd3", 4)
        assert {called.tokens for called in measured.calls if called.rows} >= {1.0, 0.5}


def test_control_nets() -> None:
    """Their residuals are those of the chosen tokens: zero ones are none, others are the dense run at ratio 1."""
    diffusers, pipe = tiny_pipelines.diffusers, build("sd3")
    control = diffusers.SD3ControlNetModel.from_transformer(pipe.transformer, 1, 0)
    with torch.no_grad():
        for block in control.controlnet_blocks:
            block.weight.normal_(generator=torch.Generator().manual_seed(1))
    controlled = diffusers.StableDiffusion3ControlNetPipeline(**pipe.components, controlnet=control)
    controlled.set_progress_bar_config(disable=True)
    picture = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))

    def results(member: epd.RAS | None, scale: float = 0.5) -> Tensor:
        epd.accelerate(controlled, *([] if member is None else [member]))
        return run(controlled, "sd3", 4, control_image=picture, controlnet_conditioning_scale=scale)

    dense = results(None)
    assert torch.equal(results(epd.RAS(1.0, warmup=1, score="norm")), dense)
    assert not torch.equal(results(HALF), dense)
    epd.accelerate(pipe, HALF)
    expected = run(pipe, "sd3", 4)
    epd.decelerate(pipe)
    assert_same(results(HALF, 0.0), expected, 1e-6)


def test_ip_adapters() -> None:
    pipe, kind = build("sd3"), tiny_pipelines.diffusers.models.attention_processor.SD3IPAdapterJointAttnProcessor2_0
    torch.manual_seed(0)
    processors = {name: kind(32, 16, 8, 24) for name in pipe.transformer.attn_processors}
    draw = torch.Generator().manual_seed(3)
    extra = {"ip_hidden_states": torch.randn(4, 5, 16, generator=draw), "temb": torch.randn(4, 24, generator=draw)}
    plain = run(pipe, "sd3", 4)
    pipe.transformer.set_attn_processor(processors)
    adapted = run(pipe, "sd3", 4, joint_attention_kwargs=extra)
    assert not torch.equal(adapted, plain)
    epd.accelerate(pipe, epd.RAS(1.0, warmup=1, score="norm"))
    assert torch.equal(run(pipe, "sd3", 4, joint_attention_kwargs=extra), adapted)
    epd.accelerate(pipe, HALF)
    assert torch.isfinite(run(pipe, "sd3", 4, joint_attention_kwargs=extra)).all()


def test_what_it_cannot_work_with_is_refused_with_the_remedy() -> None:
    def refused(pipe: Any, text: str) -> None:  # noqa: ANN401
        with pytest.raises(ValueError, match=text):
            epd.accelerate(pipe, HALF)

    refused(build("sd"), "does not know UNet2DConditionModel: it works in DiTTransformer2DModel, Flux")
    pipe = build("sd3")
    before = traces(pipe)
    pipe.transformer.fuse_qkv_projections()
    refused(pipe, r"fused projections.*unfuse_qkv_projections\(\)")
    pipe.transformer.unfuse_qkv_projections()
    pipe = build("flux")
    config = tiny_pipelines.diffusers.FirstBlockCacheConfig(threshold=0.1)
    pipe.transformer.enable_cache(config)
    refused(pipe, r"active in the network.*disable_cache\(\)")
    pipe.transformer.disable_cache()
    kind = tiny_pipelines.diffusers.models.transformers.transformer_flux.FluxIPAdapterAttnProcessor
    pipe.transformer.transformer_blocks[0].attn.set_processor(kind(32, 16))
    refused(pipe, r"FluxIPAdapterAttnProcessor.*unload_ip_adapter\(\)")
    pipe = epd.accelerate(build("sd3"), HALF)  # afterwards
    pipe.transformer.fuse_qkv_projections()
    with pytest.raises(ValueError, match="fused projections"):
        run(pipe, "sd3", 3)
    pipe = epd.accelerate(build("sd3"), HALF)
    attention = network(pipe).transformer_blocks[0].attn
    attention.to_k = torch.nn.Sequential(attention.to_k)  # as LoRA wraps it
    with pytest.raises(ValueError, match="was replaced.*accelerate again"):
        run(pipe, "sd3", 3)
    pipe = build("sd3")
    with pytest.raises(ValueError, match="ras and ras do not go together"):
        epd.accelerate(pipe, HALF, HALF)
    assert traces(pipe) == before


def test_one_channel_has_no_deviation() -> None:
    model = epd.accelerate(digits(), epd.RAS(0.5, score="std"))
    with pytest.raises(ValueError, match="one channel: give 'change' or 'norm'"):
        epd.solve(epd.rules.euler(), model, epd.unit_noise([0], model.shape), epd.schedules.logsnr(2, 0.1, 80.0))


def test_slopes_have_gradients_through_what_is_kept() -> None:
    model = digits()
    epd.accelerate(model, epd.RAS(0.5, warmup=1, score="norm"))
    noise = epd.unit_noise([0], model.shape).requires_grad_()
    epd.solve(epd.rules.euler(), model, noise, epd.schedules.logsnr(3, 0.05, 80.0)).square().sum().backward()
    assert noise.grad is not None and (noise.grad != 0).all()
