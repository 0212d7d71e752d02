"""`from_pipeline` is the pipeline: solved with Euler it gives what the pipeline gives with its stock Euler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import tiny_pipelines
from helpers.pipeline_families import FAMILIES, SEEDS, assert_same, both_ways
from helpers.pipeline_tables import table_for

import epd
from epd.denoisers.noise import unit_noise
from epd.pipelines.enable import disable, enable
from epd.pipelines.scheduler import EPDScheduler


@pytest.mark.parametrize("guidance", [4.0, 1.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_euler_is_the_stock_pipeline(name: str, guidance: float) -> None:
    pipe, family = tiny_pipelines.build(name), FAMILIES[name]
    scale = None if name == "ddpm" else guidance
    model = family.model(pipe, scale)
    assert model.guidance == (1.0 if scale is None else guidance)
    # DDPM's states reach hundreds: processors of narrower vectors were 7e-5 apart in pixels.
    assert_same(*both_ways(pipe, family, model, scale), 1e-4 if name == "ddpm" else 1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fan_is_one_call_and_equals_single_evaluations(name: str) -> None:
    pipe, family = tiny_pipelines.build(name), FAMILIES[name]
    model = family.model(pipe, None if name == "ddpm" else 3.0)
    bound, top = model.for_seeds(SEEDS), model.sigma_max
    x = unit_noise(SEEDS, model.shape) * top
    sigma = torch.tensor([top, top / 2, top / 4, top / 8], dtype=torch.float64)
    calls: list[int] = []
    network = pipe.components.get("unet") or pipe.components["transformer"]
    handle = network.register_forward_pre_hook(lambda module, args: calls.append(1))
    with torch.no_grad():
        fan = bound(x.repeat_interleave(2, 0), sigma)
        handle.remove()
        single = [bound(x, sigma[k::2][:, None].expand(2, 1).reshape(2)) for k in range(2)]
        alone = [model.for_seeds([s])(x[i : i + 1], sigma[2 * i]) for i, s in enumerate(SEEDS)]
    assert len(calls) == (2 if name == "wan" else 1)
    assert_same(fan[::2], single[0])
    assert_same(fan[1::2], single[1])
    assert_same(fan[::2], torch.cat(alone))


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart", "lumina", "wan", "animatediff", "dit"])
def test_seeds_stand_for_conditions(name: str) -> None:
    model = FAMILIES[name].model(tiny_pipelines.build(name), 3.0)
    x = unit_noise([0], model.shape) * model.sigma_max
    sigma = torch.tensor(model.sigma_max / 2, dtype=torch.float64)
    with torch.no_grad():
        first, second, again = (model.for_seeds([seed])(x, sigma) for seed in (0, 1, 3))
        unbound = model(x, sigma)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    assert torch.equal(first, unbound)


@pytest.mark.parametrize("name", FAMILIES)
def test_differentiable_with_respect_to_the_state(name: str) -> None:
    pipe = tiny_pipelines.build(name)
    model = FAMILIES[name].model(pipe, None if name == "ddpm" else 2.0)
    bound, half = model.for_seeds(SEEDS), torch.tensor(0.5, dtype=torch.float64)
    x, direction = unit_noise(SEEDS, model.shape), unit_noise((8, 9), model.shape)
    weight = unit_noise((6, 7), model.shape)
    leaf = x.clone().requires_grad_()
    (bound(leaf, half) * weight).sum().backward()
    assert leaf.grad is not None
    with torch.no_grad():
        ahead, behind = (float((bound(x + h * direction, half) * weight).double().sum()) for h in (0.01, -0.01))
    assert float((leaf.grad * direction).sum()) == pytest.approx((ahead - behind) / 0.02, rel=0.01, abs=0.05)
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert all(p.grad is None for part in parts for p in part.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_pipeline_and_the_random_state_are_left_alone(name: str) -> None:
    pipe, family = tiny_pipelines.build(name), FAMILIES[name]
    before, config, random = dict(vars(pipe)), dict(pipe.config), torch.get_rng_state()
    scale = None if name == "ddpm" else 3.0
    model = family.model(pipe, scale)
    x = unit_noise([0], model.shape)
    model(x, torch.tensor(0.5))
    model.decode(x)
    assert torch.equal(torch.get_rng_state(), random)
    assert dict(pipe.config) == config
    assert pipe.scheduler is before["scheduler"]
    assert pipe.encode_prompt.__self__ is pipe if "encode_prompt" in dir(pipe) else True
    assert pipe._progress_bar_config == before["_progress_bar_config"]
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            assert not part._forward_pre_hooks
    fresh = tiny_pipelines.build(name)
    call = {**family.call([1], 2, scale), "output_type": "np"}
    one, other = (p(**{**call, "generator": torch.Generator().manual_seed(1)})[0] for p in (pipe, fresh))
    assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


@pytest.mark.parametrize("name", FAMILIES)
def test_decode_is_the_pipelines_own(name: str) -> None:
    pipe, family = tiny_pipelines.build(name), FAMILIES[name]
    scale = None if name == "ddpm" else 1.0
    model = family.model(pipe, scale)
    if family.condition != "prompts":
        return  # compared as pictures in test_euler_is_the_stock_pipeline
    call = family.call(SEEDS, 2, scale)
    latents = pipe(**call)[0]
    call["generator"] = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    pictures = pipe(**{**call, "output_type": "pt"})[0]
    ours = model.decode(latents if model.packing is None else model.packing.unpack(latents))
    if pictures.ndim == 5:
        pictures = torch.cat(list(pictures.unbind(1)), dim=-1)
    assert_same(ours, pictures)
    assert 0 <= float(ours.min()) <= float(ours.max()) <= 1


FAN: dict[str, Any] = {"nodes": [[0.3, 0.7], [0.15, 0.6], [0.4, 0.8]], "weights": [[0.4, 0.6], [0.1, 0.9], [0.5, 0.5]]}


def table_of(kind: str, name: str, top: float) -> epd.Table:
    return epd.Table([top, top / 2, top / 5, top / 50], **FAN) if kind == "fan" else table_for(name, kind)


@pytest.mark.filterwarnings("ignore:the table's first slope is analytic")
@pytest.mark.parametrize(
    ("kind", "placement"),  # one point a call is in one place whether fans are batched or not
    [(kind, way) for kind in ("fan", "dense", "dense fan") for way in ("batched", "serial", "bare")
     if (kind, way) != ("dense", "serial")],
)  # fmt: skip
@pytest.mark.parametrize("name", FAMILIES)
def test_a_pipeline_with_a_table_is_solve_on_its_model(name: str, kind: str, placement: str) -> None:
    pipe, family = tiny_pipelines.build(name), FAMILIES[name]
    scale = None if name == "ddpm" else 3.0
    model = family.model(pipe, scale)
    table = table_of(kind, name, model.sigma_max)
    if placement == "bare":
        if name in ("dit", "ddpm") and not table.moves_first_call:
            return  # they pass bare noise, which only the hook can scale for a first call that counts
        pipe.scheduler = EPDScheduler.from_table(table, pipe.scheduler.config)
        depth = table.nfe + table.moves_first_call
    else:
        enable(pipe, table, placement == "batched")
        depth = epd.summary(pipe).depth
        assert depth == (table.depth if placement == "batched" else table.nfe)
    made = torch.as_tensor(pipe(**family.call(SEEDS, depth, scale))[0])
    with torch.no_grad():  # the model evaluates the enabled pipeline as well as it did before
        solved = epd.solve(table.rule(), model.for_seeds(SEEDS), unit_noise(SEEDS, model.shape), table.sigmas.tolist())
    disable(pipe)
    if family.condition != "prompts":
        # Pictures in [0, 1] of states that reach hundreds (DDPM's): float32 rounds those to 2e-5.
        assert_same(model.decode(solved), made.permute(0, 3, 1, 2), 1e-4 if name == "ddpm" else 1e-5)
    else:
        assert_same(solved, made if model.packing is None else model.packing.unpack(made))
