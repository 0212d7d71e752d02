"""FirstBlock and TeaCache: what they leave out, what stands for it, and that every place of a step has its own."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from helpers import tiny_pipelines
from helpers.accelerating import drivers, traces
from helpers.pipeline_families import FAMILIES
from helpers.pipeline_tables import assert_same, table_for
from helpers.sited import Sited, moment
from helpers.tiny_pipelines import build, network, run
from torch import Tensor

import epd
from epd.accelerators.block_lists import LISTS, Blocks
from epd.accelerators.measure import flops_of

NETWORKS = ("dit", "pixart", "sd3", "flux", "lumina", "wan")
ALWAYS = 1e9  # leaves out all that may be
MEMBERS = (epd.FirstBlock, epd.TeaCache)


def inputs(seed: int) -> dict[str, Any]:
    """Of the tiny DiT, one row."""
    drawn = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return {"hidden_states": drawn, "timestep": torch.tensor([10 + 50 * seed]), "class_labels": torch.tensor([1])}


def added(net: Any, last: int = 1) -> Tensor:  # noqa: ANN401
    """What the last block of a dense call adds to the first one's output."""
    return net.seen[last] - net.seen[0]


class Seen:
    """The outputs of the blocks of a bare network."""

    def __init__(self, net: Any) -> None:  # noqa: ANN401
        self.net, self.seen = net, {}
        for i, block in enumerate(net.transformer_blocks):
            block.register_forward_hook(lambda m, a, out, i=i: self.seen.__setitem__(i, out))

    def __call__(self, **given: Any) -> Tensor:  # noqa: ANN401
        return self.net(**given)[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_left_out_is_bit_equal_in_all_drivers_and_leaves_nothing(name: str) -> None:
    pipe = build(name)
    for driver, made in drivers(name, pipe, "epd"):
        expected, before = made(), traces(pipe)
        for member in MEMBERS:
            epd.accelerate(pipe, member(0.0))
            with epd.measure(pipe, counts=False) as measured:
                assert torch.equal(made(), expected), driver
            assert measured.cost.share == 1
        epd.decelerate(pipe)
        assert traces(pipe) == before


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("name", ["dit", "pixart", "sd3"])
def test_a_fan_of_two_has_memory_of_its_own(name: str, member: Any) -> None:  # noqa: ANN401
    """First and last step whole; between them only what is always computed; one by one the same as together."""
    pipe, made = build(name), []
    for parallel in (True, False):
        epd.enable(pipe, table_for(name, "memory"), parallel=parallel)
        epd.accelerate(pipe, member(ALWAYS))
        with epd.measure(pipe, counts=False) as measured:
            made.append(run(pipe, name, 4))
        assert torch.equal(run(pipe, name, 4), made[-1]), "a second run"
        least = 1 / 2 if member is epd.FirstBlock else 0.0
        shares = {n: {c.blocks for c in measured.calls if c.now.step == n} for n in range(4)}
        assert shares == {0: {1.0}, 1: {least}, 2: {least}, 3: {1.0}}
        assert max(c.now.points for c in measured.calls) == (2 if parallel else 1)
        assert measured.store > 0
    assert_same(made[0], made[1], 1e-5)


def test_what_stands_for_the_other_blocks() -> None:
    """Of the third call: h_0 + R_2, or with log sigma ahead h_0 + R_2 + s (R_2 - R_1), in place of the last block."""
    sigmas = (3.0, 2.0, 1.2)
    bare = Seen(network(build("dit")))
    residuals = []
    for seed in (0, 1):
        bare(**inputs(seed))
        residuals.append(added(bare))
    bare(**inputs(2))
    ahead = math.log(sigmas[2] / sigmas[1]) / math.log(sigmas[1] / sigmas[0])
    for order, rest in ((0, residuals[1]), (1, residuals[1] + ahead * (residuals[1] - residuals[0]))):
        handle = bare.net.transformer_blocks[1].register_forward_hook(lambda *_, rest=rest: bare.seen[0] + rest)
        expected = bare(**inputs(2))
        handle.remove()
        one = Sited(network(build("dit")), epd.FirstBlock(ALWAYS, order=order))
        # `first` makes the second call whole, too
        for step, seed in ((0, 0), (0, 1)):
            one(moment(step, sigmas[seed]), **inputs(seed))
        assert_same(one(moment(2, sigmas[2]), **inputs(2)), expected, 1e-6)
        assert one.share == 1 / 2


@pytest.mark.parametrize("member", MEMBERS)
def test_the_same_input_again_gives_the_same_output_at_every_place(member: Any) -> None:  # noqa: ANN401
    """State, points and guidance branches are told apart: each takes up what it had itself."""
    net = network(build("dit"))
    one, places = Sited(net, member(ALWAYS, order=0)), []
    for changes in ({}, {"branch": 1}, {"state": False, "ask": 1}, {"state": False, "ask": 1, "slots": (1,)}):
        places.append((changes, inputs(len(places)), net(**inputs(len(places)))[0]))
    for step in (0, 1, 2):
        for changes, given, dense in places:
            assert_same(one(moment(step, **changes), **given), dense, 1e-6)
            assert (one.share < 1) == (step > 0)
    assert torch.equal(net(**places[0][1])[0], places[0][2]), "outside of a run"
    one.site.undo()


def test_the_change_that_decides() -> None:
    """Relative change of the first residual, or the sum of those of the modulated input since all was computed."""
    bare = Seen(network(build("dit")))
    entered: list[Tensor] = []
    bare.net.transformer_blocks[0].register_forward_pre_hook(lambda m, args: entered.append(args[0]))
    attention = bare.net.transformer_blocks[0].attn1
    modulated: list[Tensor] = []
    attention.register_forward_pre_hook(lambda m, args: modulated.append(args[0]))
    first = []
    for seed in range(4):
        bare(**inputs(seed))
        first.append(bare.seen[0] - entered[-1])

    def change(values: list[Tensor], old: int, new: int) -> float:
        return float((values[new] - values[old]).abs().sum() / values[old].abs().sum())

    steps = (1, 2, 3)
    for member, expected in (
        (epd.FirstBlock, [change(first, 0, n) for n in steps]),
        (epd.TeaCache, [sum(change(modulated, n - 1, n) for n in range(1, m + 1)) for m in steps]),
    ):
        for n, value in zip(steps, expected, strict=True):
            for factor, left_out in ((1 + 1e-4, True), (1 - 1e-4, False)):
                one = Sited(network(build("dit")), member(max(expected[:n]) * factor if left_out else value * factor))
                for step in range(n + 1):
                    one(moment(step, 1.0 / (1 + step)), **inputs(step))
                if left_out or value == max(expected[:n]):
                    assert (one.share < 1) == left_out, (member, n, factor)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_modulated_input_is_what_the_first_attention_sees(name: str) -> None:
    pipe = build(name)
    blocks, seen = Blocks(network(pipe)), []
    first = blocks.modules[0]
    attention = dict(first.named_children()).get("attn1") or dict(first.named_children())["attn"]

    def arguments(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(blocks.modulated(blocks.arguments(0, args, kwargs)))

    def sees(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert torch.equal(seen[-1], args[0] if args else kwargs["hidden_states"])

    first.register_forward_pre_hook(arguments, with_kwargs=True)
    attention.register_forward_pre_hook(sees, with_kwargs=True)
    run(pipe, name, 2)
    assert len(seen) >= 2


@pytest.mark.parametrize(("name", "member"), [("sd3", epd.TeaCache(0.1)), ("lumina", epd.FirstBlock(0.7))])
def test_a_sample_does_not_depend_on_its_batch(name: str, member: Any) -> None:  # noqa: ANN401
    model, table, seeds = FAMILIES[name].model(build(name), 3.0), table_for(name, "memory"), (0, 1, 2)
    epd.accelerate(model, member)

    def solved(own: tuple[int, ...]) -> Tensor:
        with torch.no_grad():
            noise = epd.unit_noise(own, model.shape)
            return epd.solve(table.rule(), model.for_seeds(own), noise, table.sigmas)

    with epd.measure(model, counts=False) as measured:
        together = solved(seeds)
    assert_same(together, torch.cat([solved((seed,)) for seed in seeds]), 1e-5)
    least = 1 / 2 if isinstance(member, epd.FirstBlock) else 0.0
    assert any(least < c.blocks < 1 for c in measured.calls), "they decide alike: the test shows nothing"


def test_floating_point_operations_by_hand() -> None:
    """T tokens of C: attention 4 C^2 + 2 T C, feed-forward 8 C^2, the modulation 6 C^2 (and its embedding) a row."""
    net = network(build("dit"))
    dense, tokens, width = flops_of(lambda: net(**inputs(0))), 16, 16
    assert net.config["num_attention_heads"] * net.config["attention_head_dim"] == width
    embedding = 2 * (256 * width + width * width)  # of the timestep, by every block's norm
    block = 2 * tokens * (12 * width**2 + 2 * tokens * width) + 2 * 6 * width**2 + embedding
    for member, left in ((epd.FirstBlock, block), (epd.TeaCache, 2 * block - 2 * 6 * width**2 - embedding)):
        one = Sited(net, member(ALWAYS))
        one(moment(0), **inputs(0))
        counted = flops_of(lambda one=one: one(moment(1), **inputs(1)))
        assert counted == pytest.approx(dense - left, rel=0.01), "TeaCache's modulation of block 0 remains"
        one.site.undo()


def test_a_reused_residual_carries_gradients() -> None:
    one = Sited(network(build("dit")), epd.FirstBlock(ALWAYS))
    given = inputs(0)
    given["hidden_states"].requires_grad_()
    one(moment(0), **given)
    one(moment(1), **inputs(1)).sum().backward()
    assert float(given["hidden_states"].grad.abs().max()) > 0


@pytest.mark.slow
def test_compiled_blocks_have_two_graphs_and_no_more_in_a_second_run() -> None:
    graphs: list[int] = []

    def backend(module: Any, example: object) -> Any:  # noqa: ANN401
        graphs.append(1)
        return module.forward

    torch._dynamo.reset()
    pipe = epd.enable(build("dit"), table_for("dit", "memory"))
    epd.accelerate(pipe, epd.FirstBlock(ALWAYS, each="call"))
    expected = run(pipe, "dit", 4)
    epd.decelerate(pipe)
    blocks = network(pipe).transformer_blocks
    for i, block in enumerate(blocks):
        blocks[i] = torch.compile(block, backend=backend, dynamic=False)
    before = [(block.forward, sorted(vars(block))) for block in blocks]
    epd.accelerate(pipe, epd.FirstBlock(ALWAYS, each="call"))
    assert_same(run(pipe, "dit", 4), expected, 1e-6)
    assert len(graphs) == 2 * len(blocks), "of every block one of B rows and one of B K"
    run(pipe, "dit", 4)
    assert len(graphs) == 2 * len(blocks)
    epd.decelerate(pipe)
    assert [(block.forward, sorted(vars(block))) for block in blocks] == before
    pipe.transformer.transformer_blocks[0] = blocks[0]._orig_mod
    blocks[0].compile(backend=backend)
    with pytest.raises(ValueError, match=r"compiled in place.*torch.compile\(block\)"):
        epd.accelerate(pipe, epd.FirstBlock(ALWAYS))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="blocks of UNet2DConditionModel are not known: .*SD3Transformer2DModel"):
        epd.accelerate(build("sd"), epd.FirstBlock(0.1))
    with pytest.raises(ValueError, match="first_block and teacache do not go together"):
        epd.accelerate(build("dit"), epd.FirstBlock(0.1), epd.TeaCache(0.1))
    for threshold, order in ((-1.0, 0), (math.nan, 0), (0.1, 2)):
        with pytest.raises(ValueError, match="must be"):
            epd.FirstBlock(threshold, order)
    with pytest.raises(ValueError, match="'sample' or 'call'"):
        epd.TeaCache(0.1, each="row")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite"):
        epd.TeaCache(0.1, (math.inf,))


def test_the_classes_that_are_listed_exist() -> None:
    for kind in LISTS:
        assert "forward" in dir(getattr(tiny_pipelines.diffusers, kind))
        assert "hidden_states" in inspect.signature(getattr(tiny_pipelines.diffusers, kind).forward).parameters
