"""What calls cost: boxes, floating point operations by hand, bytes, and what the accelerators themselves take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.accelerating import Everything, Following, told
from helpers.pipeline_tables import table_for
from helpers.tiny_pipelines import build, run
from torch import Tensor

import epd
from epd.accelerators.accelerate import recorded
from epd.accelerators.cost import Called, Cost, merged, together
from epd.accelerators.measure import flops_of
from epd.accelerators.moment import Moment, Work
from epd.accelerators.planned import of_scheduler
from epd.accelerators.site import Site, Under
from epd.experiments.benchmarks.caches import STEPS, operations, solving
from epd.experiments.benchmarks.networks import around, transformer


def moment(**changes: Any) -> Moment:  # noqa: ANN401
    values: dict[str, Any] = {
        "step": 0, "steps": 4, "ask": 0, "slots": (0, 1), "branch": 0, "copies": 2, "samples": 3, "sigma": (2.0, 1.0),
        "state": True,
    }  # fmt: skip
    return Moment(**{**values, **changes})


def test_nothing_is_put_in_or_taken_out_while_it_is_measured() -> None:
    """A measurement would go on with the hooks of before."""
    pipe = build("sd")
    for accelerated in (False, True):
        if accelerated:
            epd.accelerate(pipe, epd.Reuse((1,)))
        with epd.measure(pipe), epd.measure(pipe):
            with pytest.raises(ValueError, match="epd.measure is under way"):
                epd.accelerate(pipe, epd.Reuse((2,)))
            if accelerated:
                with pytest.raises(ValueError, match="epd.measure is under way"):
                    epd.decelerate(pipe)
    epd.accelerate(pipe, epd.Reuse((2,)))
    epd.decelerate(pipe)
    assert not epd.summary(pipe).accelerated


def test_the_volume_of_boxes() -> None:
    now = moment()
    calls = [Called.of(now, None), Called.of(now, Work([0, 5], 0.5, 0.25)), Called.of(now, Work((), 1.0, 1.0))]
    cost = Cost.of(calls)
    assert cost == Cost(3, 36, 12 + 4, 12 + 2, 12 + 0.5)
    assert cost.share == 12.5 / 36 and Cost().share == 1
    assert "3 calls, 36 rows dense: 16 rows" in str(cost)


def test_what_several_leave() -> None:
    now = moment()
    assert merged([None, Work([0, 1, 2], 0.5), Work(torch.tensor([2, 1]), 0.5, 0.1)], now) == Work([1, 2], 0.25, 0.1)
    assert merged([Work(range(6))], now) == Work()
    assert together([[Work([0])], None], [now]) is None


def attention_and_linear(rows: int, tokens: int, context: int, width: int) -> int:
    """2 x products of one attention of `rows`: Q and output of `tokens`, K and V of `context`, scores and values."""
    linear = 2 * rows * width * width * (2 * tokens + 2 * context)
    return linear + 2 * 2 * rows * tokens * context * width


def test_flops_by_hand() -> None:
    """One attention of torch's functional kind, in its own precision and that of the processor's kernel."""
    b, t, s, heads, d = 3, 20, 12, 4, 8
    q, k, v = torch.randn(b, heads, t, d), torch.randn(b, heads, s, d), torch.randn(b, heads, s, d)
    assert flops_of(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)) == 2 * 2 * b * heads * t * s * d


def test_flops_of_a_transformer_are_those_counted_by_hand() -> None:
    """DiT: per block two attentions are one self-attention, and the MLP is 4 wide; timestep and class embeddings are
    one small product a block.
    """
    pipe = build("dit")
    net = pipe.transformer
    width, tokens, rows = 16, 16, 4
    blocks = len(net.transformer_blocks)
    per_block = attention_and_linear(rows, tokens, tokens, width) + 2 * rows * tokens * 8 * width**2
    embedding = sum(
        2 * rows * m.in_features * m.out_features
        for block in net.transformer_blocks
        for m in block.norm1.modules()
        if isinstance(m, torch.nn.Linear)
    )
    ends = 2 * rows * tokens * (4 * 4 * width + width * 8 * 4)  # patches of 2 x 2, four channels in and eight out
    ends += 2 * rows * width * 2 * width  # the last norm's
    ends += sum(
        2 * rows * m.in_features * m.out_features
        for m in net.transformer_blocks[0].norm1.emb.timestep_embedder.modules()
        if isinstance(m, torch.nn.Linear)
    )  # the last norm's conditioning
    with epd.measure(pipe) as measured:
        run(pipe, "dit", 1)
    expected = blocks * per_block + embedding + ends
    assert abs(measured.flops / expected - 1) < 0.01


def test_measured_is_planned_for_a_static_schedule() -> None:
    pipe = epd.enable(build("sd"), table_for("sd", "mixed"))
    reuse = epd.Reuse((1, 3), "fan")
    epd.accelerate(pipe, reuse)
    calls = of_scheduler(pipe, **told("sd"))
    planned = together([reuse.plan(calls)], calls)
    with epd.measure(pipe) as measured:
        run(pipe, "sd", 4)
    assert measured.calls == planned
    shown = str(epd.summary(pipe))
    assert "accelerated: reuse:steps=1+3,where=fan" in shown and str(measured.cost) in shown
    assert "plan of a sample: 6 calls, 10 rows dense: 6 rows" in shown
    epd.decelerate(pipe)
    assert epd.summary(pipe).accelerated == ()
    assert recorded(pipe) == ()
    epd.disable(pipe)
    assert "no learned solver" in str(epd.summary(epd.accelerate(pipe, reuse)))


def test_bytes_that_live_are_those_of_one_call() -> None:
    pipe = build("sd")
    with epd.measure(pipe) as one:
        run(pipe, "sd", 2)
    with epd.measure(pipe) as two:
        run(pipe, "sd", 4)
    with epd.measure(pipe) as wide:
        run(pipe, "sd", 2, prompt=["fox"] * 4, generator=None)
    assert one.peak == two.peak and 2 * one.flops == two.flops
    assert 1.8 < wide.peak / one.peak < 2.2 and wide.flops == 2 * one.flops
    assert one.store == 0


def test_seconds_are_those_beside_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only the network (100 a call) and an accelerator's hook inside of it (3 a call) move on."""
    clock = [0.0]

    def waits(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    pipe = build("dit")
    handle = pipe.transformer.proj_out_1.register_forward_pre_hook(lambda *_: waits(100.0))

    class Slow(Everything):
        def attach(self, site: Site) -> Following:
            site.before(site.only.get_submodule("proj_out_2"), lambda *_: waits(3.0))
            return Following()

    epd.accelerate(pipe, Slow())
    with epd.measure(pipe, counts=False) as measured:
        run(pipe, "dit", 5)
    handle.remove()
    assert measured.seconds == 15 and clock[0] == 515


@pytest.mark.parametrize("member", [epd.FirstBlock, epd.TeaCache])
def test_what_a_cache_adds_to_a_call_are_few_operations_whatever_the_depth(member: Any) -> None:  # noqa: ANN401
    """Where it leaves nothing out: two differences, two sums, what is kept; and no block's norm is made twice."""
    added = []
    for layers in (2, 5):
        it = around("deep", transformer(1, layers, 8), torch.device("cpu"))
        run = solving(it, 1)
        norms: list[object] = []
        bare = operations(run)
        epd.accelerate(it.model, member(1e-12))
        norm = it.network.get_submodule("transformer_blocks.0.norm1.norm")
        norm.register_forward_hook(lambda *_, norms=norms: norms.append(1))
        run()
        assert len(norms) == STEPS
        added.append((operations(run) - bare) / STEPS)
    assert added[0] == added[1] < 20


def test_seconds_are_those_of_hooks_and_none_counts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Around a network of one layer, which a hook runs itself, too; the layer takes 100 s, hooks 10 s, 1 s and 2 s."""
    clock = [0.0]

    def takes(seconds: float) -> None:
        clock[0] += seconds

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            takes(100)
            return x

    def around_layer(original: Any, x: Tensor) -> Tensor:  # noqa: ANN401
        takes(1)
        y = original(x)
        takes(2)
        return y

    def around_network(original: Any, x: Tensor) -> Tensor:  # noqa: ANN401
        takes(10)
        layer(x)
        return original(x)

    layer = Layer()
    outer, under = torch.nn.Sequential(layer), Under()
    site = Site({"network": outer}, None, under)
    site.cover(layer, around_layer)
    site.cover(outer, around_network)
    monkeypatch.setattr("epd.accelerators.site.time.perf_counter", lambda: clock[0])
    under.timed = True
    outer(torch.ones(1))
    assert clock[0] == 10 + 2 * 103 and under.seconds == 10 + 2 * 3
