"""Region-adaptive sampling: all tokens are the dense run, some are as planned, and each sample chooses its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import tiny_pipelines
from helpers.accelerating import drivers, told, traces
from helpers.pipeline_families import FAMILIES, SEEDS
from helpers.pipeline_tables import assert_same, table_for
from helpers.tiny_pipelines import build, run
from torch import Tensor

import epd
from epd.accelerators import planned
from epd.accelerators.cost import together
from epd.denoisers.digits import digits
from epd.solvers.walk import Ask, History, Steps

WIDE: dict[str, Any] = {"height": 96, "width": 64}  # 6 x 4 tokens
ONE_CALL = "one-call with afs"
HALF = epd.RAS(0.5, warmup=2)


def made(name: str) -> tuple[Any, str]:
    """A family's pipeline, and by which name the helpers ask it."""
    if name != "sd35":
        return build(name), name
    pipe = build("sd3")  # with a second self-attention in the first blocks, and normed queries and keys
    config = {**pipe.transformer.config, "dual_attention_layers": (0,), "qk_norm": "rms_norm"}
    torch.manual_seed(0)
    pipe.register_modules(transformer=tiny_pipelines.diffusers.SD3Transformer2DModel.from_config(config).eval())
    return pipe, "sd3"


def sized(name: str, batch: int = 3) -> dict[str, Any]:
    """Three samples, and a picture that is no square where the network knows others."""
    out: dict[str, Any] = {"generator": [torch.Generator().manual_seed(i) for i in range(batch)]}
    if name == "dit":
        return out | {"class_labels": [0, 1, 0][:batch]}
    return out | WIDE | {"prompt": list(tiny_pipelines.PROMPTS[:batch])}


@pytest.mark.parametrize("name", ["sd3", "sd35", "flux", "lumina", "pixart", "dit"])
def test_all_tokens_are_the_dense_run_bit_by_bit(name: str) -> None:
    pipe, kind = made(name)
    run(pipe, kind, 2)
    before = traces(pipe)
    for parallel in (None, True, False) if name == "sd3" else (None, True):
        if parallel is not None:
            epd.enable(pipe, table_for(kind, "mixed"), parallel=parallel)
        expected = run(pipe, kind, 4, **sized(kind))
        epd.accelerate(pipe, epd.RAS(1.0, warmup=1, score="norm"))
        assert torch.equal(run(pipe, kind, 4, **sized(kind)), expected)
        if parallel:
            epd.accelerate(pipe, epd.RAS(0.4, warmup=1, score="norm"))
            assert not torch.equal(run(pipe, kind, 4, **sized(kind)), expected)
        epd.decelerate(pipe)
        epd.disable(pipe)
    run(pipe, kind, 2)
    assert traces(pipe) == before


def asked_again(x: Tensor, sigma: Tensor, sigma_next: Tensor, n: int, history: History) -> Steps:
    """Euler, whose fan is the state itself, twice: what is kept is what would be computed."""
    yield Ask(x[None], sigma[None])
    slopes = yield Ask(torch.stack([x, x]), torch.stack([sigma, sigma]))
    return slopes.mean(0), history


@pytest.mark.parametrize("name", ["sd3", "sd35", "flux", "lumina", "pixart", "dit"])
def test_chosen_tokens_are_those_of_the_whole_where_nothing_is_stale(name: str) -> None:
    """Positions, masks, lengths: the half that is computed among kept keys and values is that half of the dense run."""
    pipe, kind = made(name)
    family = FAMILIES[kind]
    changes = {} if kind == "dit" else {"size": {**family.size, **WIDE}}
    model = dataclasses.replace(family, **changes).model(pipe, None if kind == "flux" else 3.0)
    denoiser, noise, sigmas = model.for_seeds(SEEDS), epd.unit_noise(SEEDS, model.shape), torch.tensor([0.9, 0.5, 0.1])

    def solved() -> Tensor:
        with torch.no_grad():
            return epd.solve(asked_again, denoiser, noise, sigmas)

    dense = solved()
    epd.accelerate(pipe, epd.RAS(0.5, "fan", score="norm", warmup=1))
    with epd.measure(pipe, counts=False) as measured:
        some = solved()
    assert [called.tokens for called in measured.calls] == [1.0, 1.0, 1.0, 0.5]
    assert_same(some, dense, 1e-5)


def test_guidance_in_two_calls() -> None:
    """FLUX with a true guidance scale: each branch keeps its own keys and values."""
    pipe, extra = build("flux"), {"true_cfg_scale": 3.0, "negative_prompt": ["owl", "snow"]}
    dense = run(pipe, "flux", 4, **extra)
    epd.accelerate(pipe, epd.RAS(1.0, warmup=1, score="norm"))
    with epd.measure(pipe, counts=False) as measured:
        assert torch.equal(run(pipe, "flux", 4, **extra), dense)
    assert [called.now.branch for called in measured.calls] == [0, 1] * 4
    epd.accelerate(pipe, HALF)
    with epd.measure(pipe, counts=False) as measured:
        run(pipe, "flux", 4, **extra)
    assert [called.tokens for called in measured.calls] == [1.0] * 4 + [0.5] * 4


@pytest.mark.parametrize(("where", "ratio"), [("all", (0.8, 0.3, 0.6)), ("fan", 0.3)])
@pytest.mark.parametrize(("name", "kind"), [("sd3", "mixed"), ("dit", "plugin with afs"), ("flux", ONE_CALL)])
def test_every_driver_computes_the_tokens_that_are_planned(
    name: str, kind: str, where: Any, ratio: Any  # noqa: ANN401
) -> None:  # fmt: skip
    pipe, member = build(name), epd.RAS(ratio, where, warmup=1, gap=3)
    out: dict[str, list[Tensor]] = {}
    for driver, call in drivers(name, pipe, kind):
        epd.accelerate(pipe, member)
        calls = planned.of_scheduler(pipe, **told(name)) if driver in ("batched", "serial") else []
        with epd.measure(pipe, counts=False) as measured:
            out.setdefault(driver, []).append(call())
        if driver == "serial" and where == "all":
            assert torch.equal(call(), out[driver][-1]), "a second run starts afresh"
        epd.decelerate(pipe)
        shares = {called.tokens for called in measured.calls}
        steps = measured.calls[0].now.steps
        assert shares <= {1.0, *(member.active(16, step, steps) / 16 for step in range(steps))}
        if where == "all" and steps == 4:
            some = {called.now.step: called.tokens for called in measured.calls if called.tokens < 1}
            assert some and some.items() <= {1: 13 / 16, 2: 5 / 16, 3: 10 / 16}.items()
        calls = calls or [called.now for called in measured.calls]
        assert measured.calls == together([member.plan(calls, 16)], calls)
        assert (len(shares) == 1) == (where == "fan" and (driver == "stock" or kind == ONE_CALL))
    for one, other in zip(out["batched"], out["serial"], strict=True):
        assert_same(one, other, 1e-5)


def test_a_fan_that_goes_with_its_state_is_whole_and_that_is_told(caplog: pytest.LogCaptureFixture) -> None:
    pipe = build("dit")
    for kind, told_of in (("plugin with afs", False), (ONE_CALL, True)):
        epd.enable(pipe, table_for("dit", kind))
        epd.accelerate(pipe, epd.RAS(0.5, "fan"))
        with caplog.at_level("WARNING", logger="epd"), epd.measure(pipe, counts=False) as m:
            run(pipe, "dit", 4)
        assert ("leaves nothing out" in caplog.text) is told_of
        assert (m.cost.tokens < m.cost.rows) is not told_of
    assert caplog.text.count("leaves nothing out") == 1


def test_the_same_ratio_in_every_part_of_a_run_is_that_ratio() -> None:
    pipe, made = build("sd3"), []
    for ratio in (0.5, (0.5, 0.5), (0.5, 0.25)):
        epd.accelerate(pipe, dataclasses.replace(HALF, ratio=ratio))
        made.append(run(pipe, "sd3", 5))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def stale_tokens(member: epd.RAS, steps: int) -> Tensor:
    """(N, B, 16) which tokens of digits keep their slope in each step of Euler's, seen from its states."""
    model, sigmas = digits(), epd.schedules.logsnr(steps, 0.05, 3.0)  # where slopes change
    epd.accelerate(model, member)
    with torch.no_grad():
        states = torch.stack(
            list(epd.trajectory(epd.rules.euler(), model, epd.unit_noise([0, 1], model.shape), sigmas))
        )
    slopes = states.diff(dim=0) / sigmas.diff().float().view(-1, 1, 1, 1, 1)
    tokens = slopes[:, :, 0].unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).flatten(2, 3)  # (N, B, 16, 4)
    still = tokens.diff(dim=0).abs().amax(-1) <= 1e-3 * tokens[1:].abs().amax(-1)  # but for rounding of the states
    return torch.cat([torch.zeros_like(still[:1]), still])


@pytest.mark.parametrize("gap", [2, 3])
def test_no_token_is_staler_than_the_gap(gap: int) -> None:
    stale = stale_tokens(epd.RAS(0.25, score="norm", warmup=1, gap=gap, strength=0.0), 10)
    longest = run_length(stale)
    assert stale[1].sum() == 2 * 12
    assert longest == gap, "and some are as stale as that"


def run_length(stale: Tensor) -> int:
    longest = current = torch.zeros(stale.shape[1:])
    for row in stale:
        current = (current + 1) * row
        longest = torch.maximum(longest, current)
    return int(longest.max())


@pytest.mark.parametrize("score", ["change", "norm", "std"])
def test_permuted_samples_are_permuted_results(score: Any) -> None:  # noqa: ANN401
    pipe = epd.accelerate(build("sd3"), epd.RAS(0.5, score=score, warmup=2))
    latents = torch.randn(3, 4, 12, 8, generator=torch.Generator().manual_seed(0))

    def permuted(order: Sequence[int]) -> Tensor:
        prompts = [tiny_pipelines.PROMPTS[i] for i in order]
        return run(pipe, "sd3", 5, prompt=prompts, latents=latents[list(order)], generator=None, **WIDE)

    assert_same(permuted([2, 0, 1]), permuted([0, 1, 2])[[2, 0, 1]], 1e-5)
    alone = run(pipe, "sd3", 5, prompt=[tiny_pipelines.PROMPTS[1]], latents=latents[1:2], generator=None, **WIDE)
    assert_same(permuted([0, 1, 2])[1:2], alone, 1e-5)


def test_keys_and_values_of_computed_tokens_are_fresh_and_those_of_the_others_are_kept() -> None:
    """A call of some tokens, seen from outside: what the attention is given, against a network that computes all."""
    pipe, seen = build("pixart"), []
    block = pipe.transformer.transformer_blocks[0]
    epd.accelerate(pipe, epd.RAS(0.5, score="norm", warmup=1))
    handles = [block.attn1.to_k.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))]
    run(pipe, "pixart", 2)
    handles[0].remove()
    (_, first), (hidden, second) = seen
    assert hidden.shape[1] == 8 and second.shape[1] == first.shape[1] == 16
    fresh = block.attn1.to_k.forward(hidden)
    stale = (second == first).all(-1)
    assert stale.sum(1).tolist() == [8] * 4
    for row in range(4):
        torch.testing.assert_close(second[row][~stale[row]], fresh[row])
