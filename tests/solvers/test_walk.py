"""The walk: what its driver sees, sends and may change, and coefficients that each sample has of its own."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.recording import Recorder, elementwise, normal
from helpers.tables import FAMILIES, SIGMAS, full_table
from torch import Tensor

import epd
from epd.solvers.answers import batched, serial
from epd.solvers.parallel import Coefficients, parallel
from epd.solvers.walk import Ask, History, Restart, Site, State, Steps, drive, walk

rules = epd.rules
GRID = torch.tensor(SIGMAS, dtype=torch.float64)
NOISE = normal(5, 2, 3)
START = NOISE * SIGMAS[0]
RULES = {"euler": rules.euler(), "heun": rules.heun(), "ipndm": rules.ipndm(), "dpmpp": rules.dpmpp(3)}
EVERY = RULES | {name: table.rule() for name, table in FAMILIES.items()}
every_rule = pytest.mark.parametrize("name", EVERY)
ARRAYS = ("nodes", "weights", "sigma_scale", "anchor_scale", "anchor", "memory", "lookahead")


@every_rule
def test_every_question_says_where_it_is_asked(name: str) -> None:
    sites: list[Site] = []

    def answer(ask: Ask) -> Tensor:
        sites.append(ask.site)
        return batched(elementwise)(ask)

    states = list(drive(walk(EVERY[name], START, GRID), answer))
    assert [state.step for state in states] == [1, 2, 3, 4]
    planned = epd.plan(EVERY[name], GRID)
    assert sites == [Site(n, stage) for n, asks in enumerate(planned) for stage in range(len(asks))]
    assert [ask.site for asks in planned for ask in asks] == sites


@every_rule
def test_answers_one_after_another_are_answers_together(name: str) -> None:
    recorder = Recorder()
    found = epd.solve(EVERY[name], recorder, NOISE, SIGMAS, answer=serial)
    assert torch.equal(found, epd.solve(EVERY[name], elementwise, NOISE, SIGMAS))
    assert {len(x) for x, _ in recorder.calls} == {len(NOISE)}
    assert len(recorder.calls) == sum(len(ask.points) for asks in epd.plan(EVERY[name], GRID) for ask in asks)


@every_rule
def test_a_restart_is_a_walk_from_the_other_state(name: str) -> None:
    """Whatever question it answers, and in whatever step: all that follows is as if the step had begun there."""
    other = normal(5, 2, 3, seed=7)
    for step, stage in itertools.product(range(4), range(2)):
        history: list[tuple[object, ...]] = []

        def remembering(x: Tensor, sigma: Tensor, after: Tensor, n: int, past: History) -> Steps:
            history.append(past)  # noqa: B023
            return EVERY[name](x, sigma, after, n, past)

        asking, reply, restarted = walk(remembering, START, GRID), None, False
        states: list[State] = []
        try:
            while True:
                event = asking.send(reply)
                reply = None
                if isinstance(event, State):
                    states.append(event)
                elif event.site == Site(step, stage) and not restarted:
                    reply, restarted = Restart(other), True
                else:
                    reply = batched(elementwise)(event)
        except StopIteration as stop:
            last = stop.value
        if not restarted:
            continue  # a step of one question
        fresh = walk(EVERY[name], other, GRID, step, history[step])
        expected = list(drive(fresh, batched(elementwise)))
        assert torch.equal(last, expected[-1].x)
        assert all(torch.equal(a.x, b.x) for a, b in zip(states[step:], expected, strict=True))


def test_a_restart_in_the_place_of_a_state_replaces_it() -> None:
    other = normal(5, 2, 3, seed=7)
    asking, reply = walk(rules.euler(), START, GRID), None
    try:
        while True:
            event = asking.send(reply)
            moved = isinstance(event, State) and event.step == 2
            reply = Restart(other) if moved else batched(elementwise)(event) if isinstance(event, Ask) else None
    except StopIteration as stop:
        expected = list(drive(walk(rules.euler(), other, GRID, 2), batched(elementwise)))[-1].x
        assert torch.equal(stop.value, expected)


def test_a_walk_may_begin_at_any_step() -> None:
    rule = FAMILIES["epd"].rule()
    whole = list(epd.trajectory(rule, elementwise, NOISE, SIGMAS))
    for begin in range(4):
        states = list(drive(walk(rule, whole[begin], GRID, begin), batched(elementwise)))
        assert [state.step for state in states] == list(range(begin + 1, 5))
        assert all(torch.equal(state.x, x) for state, x in zip(states, whole[begin + 1 :], strict=True))


def tables_of_samples(calls: int, afs: bool) -> list[epd.Table]:
    return [full_table(calls, afs, seed=seed) for seed in range(len(NOISE))]


def mixed(parts: list[Coefficients], own: tuple[str, ...]) -> Coefficients:
    """Some numbers of each sample's own, the others those of the first."""
    stacked = {name: torch.stack([getattr(part, name) for part in parts], -1) for name in own}
    return dataclasses.replace(parts[0], **stacked)


def assert_close(found: Tensor, expected: Tensor) -> None:
    """To 1e-12: coefficients (K, B) stand in other vectors than (K,), and `pow` rounds by its place in the vector."""
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("own", [*((name,) for name in ARRAYS), ("nodes", "lookahead"), ARRAYS], ids="-".join)
@pytest.mark.parametrize(("calls", "afs"), [(2, False), (2, True), (1, False), (1, True)])
def test_coefficients_of_every_sample_alone_or_together(calls: int, afs: bool, own: tuple[str, ...]) -> None:
    """Whichever fields have a sample axis, sample b is solved by its own numbers."""
    parts = [table.coefficients() for table in tables_of_samples(calls, afs)]
    together = epd.solve(parallel(mixed(parts, own)), elementwise, NOISE, SIGMAS)
    for b, part in enumerate(parts):
        alone = dataclasses.replace(parts[0], **{name: getattr(part, name) for name in own})
        expected = epd.solve(parallel(alone), elementwise, NOISE[b : b + 1], SIGMAS)
        assert_close(together[b : b + 1], expected)


@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.parametrize("order", [1, 3])
def test_nodes_of_every_sample_where_there_are_as_many_samples_as_points(samples: int, order: int) -> None:
    """Silently wrong by 0.29 once: (J,) weights met (J, B) nodes along the wrong axis where B = J."""
    table = dataclasses.replace(FAMILIES["plugin" if order == 3 else "epd"])
    c = table.coefficients()
    shift = torch.linspace(0.8, 1.0, samples, dtype=torch.float64)
    rule = parallel(dataclasses.replace(c, nodes=c.nodes[..., None] * shift))
    found = epd.solve(rule, elementwise, NOISE[:samples], SIGMAS)
    for b in range(samples):
        alone = parallel(dataclasses.replace(c, nodes=c.nodes * shift[b]))
        assert_close(found[b : b + 1], epd.solve(alone, elementwise, NOISE[b : b + 1], SIGMAS))


@every_rule
def test_noise_levels_of_every_sample(name: str) -> None:
    stretch = torch.linspace(0.7, 1.3, len(NOISE), dtype=torch.float64)
    together = epd.solve(EVERY[name], elementwise, NOISE, GRID[:, None] * stretch)
    for b in range(len(NOISE)):
        alone = epd.solve(EVERY[name], elementwise, NOISE[b : b + 1], GRID * stretch[b])
        assert_close(together[b : b + 1], alone)


def test_noise_levels_of_every_sample_with_computed_weights() -> None:
    rule, stretch = rules.ipndm(4, "computed"), torch.tensor([0.5, 1.0, 1.5, 2.0, 2.5], dtype=torch.float64)
    together = epd.solve(rule, elementwise, NOISE, (GRID[:, None] * stretch) ** torch.linspace(0.9, 1.1, 5))
    for b in range(len(NOISE)):
        levels = (GRID * stretch[b]) ** torch.linspace(0.9, 1.1, 5)[b]
        assert_close(together[b : b + 1], epd.solve(rule, elementwise, NOISE[b : b + 1], levels))


@pytest.mark.parametrize("name", ARRAYS)
def test_coefficients_of_another_shape_are_an_error(name: str) -> None:
    c = full_table().coefficients()
    value = getattr(c, name)
    for wrong in (value[:-1], value[..., None, None]):
        with pytest.raises(ValueError, match=rf"{name} has shape .* needed .*sample axis"):
            dataclasses.replace(c, **{name: wrong})
    other = "anchor" if name != "anchor" else "nodes"
    counts = {name: 4, other: 3}
    both = {field: getattr(c, field)[..., None].repeat_interleave(count, -1) for field, count in counts.items()}
    with pytest.raises(ValueError, match="the sample axes differ"):
        dataclasses.replace(c, **both)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(("own", "batch"), [(2, 1), (2, 3), (1, 2)])
def test_coefficients_of_another_number_of_samples_are_an_error(name: str, own: int, batch: int) -> None:
    """Those of two samples would make two results of one sample, as if there had been two."""
    c = full_table().coefficients()
    several = dataclasses.replace(c, **{name: getattr(c, name)[..., None].repeat_interleave(own, -1)})
    with pytest.raises(ValueError, match=f"coefficients are those of {own} samples, the state has {batch}"):
        epd.solve(parallel(several), elementwise, NOISE[:batch], SIGMAS)


@pytest.mark.parametrize(("own", "batch"), [(2, 1), (2, 3), (1, 2)])
def test_sigmas_of_another_number_of_samples_are_an_error(own: int, batch: int) -> None:
    with pytest.raises(ValueError, match=f"are those of {own} samples, but noise .* is {batch} samples"):
        epd.solve(rules.euler(), elementwise, NOISE[:batch], GRID[:, None].expand(-1, own))


@every_rule
def test_a_walk_begun_late_runs_or_says_what_it_needs(name: str) -> None:
    for begin in range(1, 4):
        try:
            states = list(drive(walk(EVERY[name], START, GRID, begin), batched(elementwise)))
        except ValueError as error:
            assert re.match(f"the walk begins at step {begin} and remembers no slopes", str(error))
            assert FAMILIES[name].columns
        else:
            assert [state.step for state in states] == list(range(begin + 1, 5))


def test_a_walk_begun_late_remembers_as_much_as_it_weighs_or_says_so() -> None:
    """Step 1 weighs no memory, step 2 what happened two steps before it."""
    plain = {"nodes": np.zeros((4, 0)), "weights": np.zeros((4, 0)), "calls": 1}
    memory = [[0.0, 0.0], [0.0, 0.0], [0.0, -0.5], [-0.5, 0.0]]
    table = epd.Table(GRID.tolist(), **plain, anchor=[1.0, 1.0, 1.5, 1.5], memory=memory)
    with pytest.raises(ValueError, match="remembers 1 slopes at step 2, where the table weighs the last 2"):
        list(drive(walk(table.rule(), START, GRID, 1), batched(elementwise)))
    assert [state.step for state in drive(walk(table.rule(), START, GRID, 3, (START,)), batched(elementwise))] == [4]


def test_a_question_of_two_shapes_is_an_error() -> None:
    points, sigma = normal(3, 3, 2), torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="both must be"):
        Ask(points, sigma.expand(3, 3), sigma)
    with pytest.raises(ValueError, match="both must be"):
        Ask(points, torch.ones(2, dtype=torch.float64))


def test_gradients_reach_the_numbers_of_every_sample() -> None:
    parts = [table.coefficients() for table in tables_of_samples(1, True)[:2]]
    c = mixed(parts, ("nodes",))

    def end(nodes: Tensor, weights: Tensor) -> Tensor:
        return epd.solve(parallel(dataclasses.replace(c, nodes=nodes, weights=weights)), elementwise, NOISE[:2], SIGMAS)

    weights = parts[0].weights.clone()  # without a sample axis beside nodes that have one
    numbers = c.nodes.clone().requires_grad_(), weights.requires_grad_()
    assert torch.autograd.gradcheck(end, numbers, eps=1e-6, atol=1e-5, rtol=1e-5)


def test_the_state_is_updated_in_one_place() -> None:
    """x + (sigma' - sigma) * slope stands in `walk` alone: nobody else multiplies by a stride and adds to a state."""
    root = Path(epd.__file__).parents[1]
    rooms = ("solvers", "pipelines", "distill", "rl", "evaluation", "commands", "experiments", "denoisers")
    places = set()
    for path in (path for room in rooms for path in (root / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and isinstance(node.right, ast.BinOp):
                factors = {name.id for name in ast.walk(node.right) if isinstance(name, ast.Name)}
                if isinstance(node.right.op, ast.Mult) and factors & {"mean_slope", "mean", "slope", "slopes"}:
                    places.add(f"{path.parent.name}/{path.name}")
    assert places <= {"solvers/walk.py"}, places
    assert places == {"solvers/walk.py"}


def test_published_levels_are_checked_for_every_sample() -> None:
    levels = np.stack([SIGMAS, SIGMAS[::-1]], 1)
    with pytest.raises(ValueError, match="sigmas must decrease"):
        epd.solve(rules.euler(), elementwise, NOISE[:2], levels)
