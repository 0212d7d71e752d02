"""Step Rehash and the fits: key steps of a hand-made similarity, features of real runs, deep blocks left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from helpers import tiny_pipelines
from helpers.accelerating import drivers, fails_in, told, traces
from helpers.pipeline_tables import assert_same, table_for
from helpers.sited import Sited, moment
from helpers.tiny_pipelines import build, network, run

import epd
from epd.accelerators import planned
from epd.accelerators.accelerate import accelerators_of
from epd.accelerators.cost import together
from epd.accelerators.fitting import Changes, similarity_of
from epd.accelerators.names import from_json, parse, spelt, to_json
from epd.accelerators.teacache import fit_polynomial
from epd.denoisers.digits import digits

BY_HAND = torch.tensor([  # of seven steps; a key is left where it falls below
    [1.00, 0.95, 0.85, 0.70, 0.60, 0.50, 0.40],
    [0.95, 1.00, 0.95, 0.80, 0.70, 0.60, 0.50],
    [0.85, 0.95, 1.00, 0.92, 0.91, 0.65, 0.60],
    [0.70, 0.80, 0.92, 1.00, 0.95, 0.85, 0.70],
    [0.60, 0.70, 0.91, 0.95, 1.00, 0.93, 0.80],
    [0.50, 0.60, 0.65, 0.85, 0.93, 1.00, 0.97],
    [0.40, 0.50, 0.60, 0.70, 0.80, 0.97, 1.00],
])  # fmt: skip

LAST = "up_blocks.1"


def svd_network() -> Any:  # noqa: ANN401
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNetSpatioTemporalConditionModel(
            sample_size=8, in_channels=8, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), cross_attention_dim=32,
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=24, num_attention_heads=(2, 2),
            transformer_layers_per_block=1, num_frames=2,
        ).eval().requires_grad_(False)  # fmt: skip


def svd_inputs(seed: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(1, 2, 8, 8, 8, generator=g), "timestep": torch.tensor(0.3 + seed),
        "encoder_hidden_states": torch.randn(1, 1, 32, generator=g), "added_time_ids": torch.ones(1, 3),
    }  # fmt: skip


def unet_inputs(seed: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(1, 4, 8, 8, generator=g), "timestep": torch.tensor(10 + 90 * seed),
        "encoder_hidden_states": torch.randn(1, 7, 32, generator=g),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("threshold", "keys"),
    [(0.9, (0, 2, 5, 6)), (0.75, (0, 3, 6)), (0.0, (0, 6)), (2.0, tuple(range(7))), (0.915, (0, 2, 4, 6))],
)
def test_key_steps_of_a_similarity_by_hand(threshold: float, keys: tuple[int, ...]) -> None:
    assert epd.key_steps(BY_HAND, threshold) == keys
    assert len(epd.key_steps(BY_HAND, count=len(keys))) == len(keys)
    calls = planned.of_solve(epd.rules.euler(), epd.schedules.logsnr(7, 0.1, 10.0))
    assert sum(len(w.rows) if w.rows is not None else 1 for w in epd.Rehash(keys).plan(calls)) == len(keys)  # type: ignore[union-attr]


def test_key_steps_for_a_count_are_those_of_some_threshold() -> None:
    drawn = torch.rand(9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = [float("inf"), *drawn.flatten().tolist()]
    for count in range(2, 10):
        keys = epd.key_steps(drawn, count=count)
        every = [epd.key_steps(drawn, level) for level in levels]
        assert keys in every and len(keys) == max(len(k) for k in every if len(k) <= count)
    for arguments in ({}, {"threshold": 0.5, "count": 3}, {"count": 1}):
        with pytest.raises(ValueError, match="give"):
            epd.key_steps(drawn, **arguments)
    with pytest.raises(ValueError, match=r"\(N, N\)"):
        epd.key_steps(drawn[:3], 0.5)


def test_the_similarity_of_features() -> None:
    features = [torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [3.0, 3.0]])]
    torch.testing.assert_close(similarity_of(features), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))


@pytest.mark.parametrize("reuse", ["output", "deep"])
def test_the_similarity_of_steps_of_a_run(reuse: str) -> None:
    pipe = epd.accelerate(build("ddpm"), epd.Reuse((1,)))
    pipe.scheduler = tiny_pipelines.diffusers.DDIMScheduler(clip_sample=False)
    seen: list[torch.Tensor] = []
    handle = network(pipe).up_blocks[0].register_forward_hook(lambda m, args, out: seen.append(out.clone()))
    found = epd.step_similarity(pipe, lambda: run(pipe, "ddpm", 4), reuse)
    handle.remove()
    assert found.shape == (4, 4) and accelerators_of(pipe) == (epd.Reuse((1,)),)
    torch.testing.assert_close(found, found.T)
    torch.testing.assert_close(found.diagonal(), torch.ones(4))
    assert len(seen) == 4, "all steps are computed while features are watched"
    if reuse == "deep":
        for i in range(4):
            for j in range(4):
                cosines = torch.cosine_similarity(seen[i].flatten(1), seen[j].flatten(1))
                assert float(found[i, j]) == pytest.approx(float(cosines.mean()), abs=1e-5)
    with pytest.raises(ValueError, match="one number of steps"):
        epd.step_similarity(pipe, lambda: [run(pipe, "ddpm", n) for n in (3, 4)], reuse)


@pytest.mark.parametrize("name", ["sd", "dit", "wan"])
def test_as_many_calls_as_key_steps_in_every_driver(name: str) -> None:
    pipe = build(name)
    for driver, made in drivers(name, pipe, "memory"):
        epd.accelerate(pipe, epd.Rehash((0, 2)))
        with epd.measure(pipe, counts=False) as measured:
            first = made()
        assert torch.equal(made(), first), driver
        steps = measured.calls[0].now.steps
        computed = {called.now.step for called in measured.calls if called.rows}
        assert computed == {0, 2, steps - 1}, driver
        assert all(called.rows in (0, called.now.rows) for called in measured.calls)
        if driver in ("batched", "serial") and isinstance(pipe.scheduler, epd.EPDScheduler):
            calls = planned.of_scheduler(pipe, **told(name))
            assert together([epd.Rehash((0, 2)).plan(calls)], calls) == measured.calls
        epd.decelerate(pipe)


@pytest.mark.slow
def test_a_compiled_network_has_two_graphs_and_no_more_in_a_second_run() -> None:
    graphs: list[int] = []

    def backend(module: Any, example: object) -> Any:  # noqa: ANN401
        graphs.append(1)
        return module.forward

    torch._dynamo.reset()
    pipe = epd.enable(build("dit"), table_for("dit", "memory"))
    epd.accelerate(pipe, epd.Rehash((0, 2)))
    expected = run(pipe, "dit", 4)
    epd.decelerate(pipe)
    pipe.transformer = torch.compile(pipe.transformer, backend=backend, dynamic=False)
    epd.enable(pipe, table_for("dit", "memory"))
    epd.accelerate(pipe, epd.Rehash((0, 2)))
    assert_same(run(pipe, "dit", 4), expected, 1e-5)
    assert len(graphs) == 2, "one of B rows and one of B K"
    run(pipe, "dit", 4)
    assert len(graphs) == 2
    for member in (epd.FirstBlock(0.1), epd.TeaCache(0.1), epd.Native(FirstBlockCacheConfig())):
        with pytest.raises(ValueError, match="is compiled.*_orig_mod"):
            epd.accelerate(pipe, member)


@pytest.mark.parametrize(("name", "between"), [("sd", 3), ("animatediff", 3), ("ddpm", 4)])
def test_deep_blocks_are_left_out_and_all_steps_full_is_bit_equal(name: str, between: int) -> None:
    pipe = build(name)
    expected, before = run(pipe, name, 5), traces(pipe)
    epd.accelerate(pipe, epd.Rehash(tuple(range(5)), "deep"))
    assert torch.equal(run(pipe, name, 5), expected)
    epd.accelerate(pipe, epd.Rehash((0, 2), "deep"))
    with epd.measure(pipe) as measured:
        first = run(pipe, name, 5)
    shares = [called.blocks for called in measured.calls]
    assert [share == 1 for share in shares] == [True, False, True, False, True] and shares[1] == shares[3] < 1
    assert not torch.equal(first, expected) and measured.store > 0
    end = fails_in(network(pipe).mid_block, 1)
    with pytest.raises(InterruptedError):
        run(pipe, name, 5)
    end()
    run(pipe, name, between)
    assert torch.equal(run(pipe, name, 5), first)
    epd.decelerate(pipe)
    assert traces(pipe) == before and torch.equal(run(pipe, name, 5), expected)


@pytest.mark.parametrize(
    ("made", "given", "reuse", "runs"),
    [
        (lambda: network(build("sd")), unet_inputs, "deep", ("down_blocks.0", "up_blocks.1")),
        (svd_network, svd_inputs, "deep", ("down_blocks.0", "up_blocks.1")),
        (
            svd_network,
            svd_inputs,
            "last_temporal",
            ("up_blocks.1.resnets.1.temporal_res_block", "up_blocks.1.attentions.1"),
        ),
    ],
)
def test_what_is_kept_stands_for_what_is_left_out(
    made: Callable[[], Any], given: Callable[[int], dict[str, Any]], reuse: str, runs: tuple[str, ...]
) -> None:
    """The same input again: the same output. Another: the network's whose cut gives what it gave before."""
    net, bare = made(), made()
    cut = "up_blocks.0" if reuse == "deep" else "up_blocks.1.resnets.1.spatial_res_block"
    kept: list[torch.Tensor] = []
    bare.get_submodule(cut).register_forward_hook(lambda m, args, out: kept.append(out) or kept[0])
    dense, other = bare(**given(0))[0], bare(**given(1))[0]
    one = Sited(net, epd.Rehash((0,), reuse))  # type: ignore[arg-type]
    ran: list[str] = []
    for name, module in net.named_modules():
        if name in (*runs, "down_blocks.1.resnets.0.conv1", "mid_block.resnets.0.conv1"):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    assert_same(one(moment(0), **given(0)), dense, 1e-6)
    ran.clear()
    assert_same(one(moment(1), **given(0)), dense, 1e-6)
    assert sorted(ran) == sorted(runs)
    assert_same(one(moment(2), **given(1)), other, 1e-6)
    assert one.share < 1
    one.site.undo()


def test_the_polynomial_fit_recovers_coefficients() -> None:
    flux = (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861)
    x = torch.linspace(0.02, 0.4, 40, dtype=torch.float64)
    y = sum(c * x**k for c, k in zip(flux, (4, 3, 2, 1, 0), strict=True))
    assert fit_polynomial(x.tolist(), y.tolist()) == pytest.approx(flux, rel=1e-6)  # type: ignore[union-attr]
    tea = epd.TeaCache(0.1, flux)
    assert tea.rescaled(0.3) == pytest.approx(
        float(torch.tensor([0.3**k for k in (4, 3, 2, 1, 0)]) @ torch.tensor(flux))
    )
    assert epd.TeaCache(0.1, (-1.0,)).rescaled(0.3) == 0
    with pytest.raises(ValueError, match="more than 4 different points"):
        fit_polynomial([0.1, 0.2, 0.3, 0.3, 0.2], [1.0] * 5)
    with pytest.raises(ValueError, match="finite"):
        fit_polynomial([0.1, 0.2], [1.0, float("nan")], 1)


def test_what_the_polynomial_is_fitted_to() -> None:
    """Changes of the first attention's input and of the network's output, row by row, without the first step."""
    pipe = build("dit")
    inputs, outputs = [], []
    block = network(pipe).transformer_blocks[0]
    block.attn1.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    network(pipe).register_forward_hook(lambda m, args, out: outputs.append(out[0]))
    changes = Changes()
    epd.accelerate(pipe, changes)  # type: ignore[arg-type]
    run(pipe, "dit", 4)
    for found, values in ((changes.inputs, inputs), (changes.outputs, outputs)):
        pairs = zip(values, values[1:], strict=False)
        expected = [((b - a).abs().flatten(1).sum(1) / a.abs().flatten(1).sum(1)).tolist() for a, b in pairs]
        assert found == pytest.approx([value for row in expected for value in row], rel=1e-5)


def test_a_fitted_teacache_of_digits() -> None:
    model = digits(1.0)
    noise, denoiser = epd.unit_noise([0, 1], model.shape), model.for_seeds([0, 1])
    sigmas = epd.schedules.logsnr(6, model.sigma_min, model.sigma_max)

    def solved() -> torch.Tensor:
        with torch.no_grad():
            return epd.solve(epd.rules.euler(), denoiser, noise, sigmas)

    dense = solved()
    fitted = epd.fit_teacache(model, solved, 0.3, degree=2)
    assert len(fitted.coefficients) == 3 and accelerators_of(model) == () and torch.equal(solved(), dense)
    epd.accelerate(model, fitted)
    with epd.measure(model, counts=False) as measured:
        solved()
    epd.decelerate(model)
    assert measured.cost.share < 1


@pytest.mark.parametrize(
    "member", [epd.Rehash((0, 3), "deep"), epd.TeaCache(0.2, (1.5, -0.25), 0), epd.FirstBlock(0.1, each="call")]
)
def test_as_text_and_as_json(member: Any) -> None:  # noqa: ANN401
    assert from_json(to_json([member])) == (member,) and parse(spelt(member)) == member


def test_what_does_not_fit_is_refused() -> None:
    for settings, text in ((((),), "give one"), (((-1,),), "from 0"), (((0,), "x"), "unknown: give one of output")):
        with pytest.raises(ValueError, match=text):
            epd.Rehash(*settings)  # type: ignore[arg-type]
    for name, reuse, text in (
        ("dit", "deep", "needs a UNet, .* epd.FirstBlock"), ("sd", "last_temporal", "give 'output', which is the same"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            epd.accelerate(build(name), epd.Rehash((0,), reuse))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rehash and reuse do not go together"):
        epd.accelerate(build("sd"), epd.Rehash((0,)), epd.Reuse((1,)))
