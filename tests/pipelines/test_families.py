"""Learned tables and hand-made rules in ten unmodified pipelines."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import torch
from helpers import tables, tiny_pipelines
from helpers.tiny_pipelines import diffusers
from torch import Tensor

import epd

FLOW_SIGMAS, DIFFUSION_SIGMAS = [1.0, 0.8, 0.5, 0.2, 0.02], [14.0, 6.0, 2.0, 0.6, 0.05]
TABLES = {  # table, and rows per sample of each network call
    "epd": (tables.epd_table(), [1, 3] * 4),
    "plugin with afs": (tables.epd_table(afs=True, order=3), [3, 1, 3, 1, 3, 1, 3]),
    "memory": (tables.full_table(), [1, 2] * 4),
    "one-call with afs": (tables.full_table(calls=1, afs=True), [3] * 4),
    "mixed": (tables.full_table(calls=[1, 2, 1, 2]), [1, 1, 2, 3, 1, 2]),
}


def table_for(name: str, kind: str) -> epd.Table:
    sigmas = FLOW_SIGMAS if name in tiny_pipelines.FLOWS else DIFFUSION_SIGMAS
    return dataclasses.replace(TABLES[kind][0], sigmas=sigmas)


def states_and_rows(pipe: Any, name: str, steps: int, **changes: Any) -> tuple[Tensor, list[int]]:  # noqa: ANN401
    """The last state that the pipeline had, and the rows of its network calls."""
    rows: list[int] = []
    last: list[Tensor] = []

    def count(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state = kwargs.get("sample", kwargs.get("hidden_states"))
        rows.append(len(args[0] if state is None else state))

    inner = pipe.scheduler.step

    def step(
        model_output: Tensor, timestep: Tensor, sample: Tensor, generator: object = None, return_dict: bool = True
    ) -> Any:  # noqa: ANN401
        out = inner(model_output, timestep, sample, return_dict=return_dict)
        last.append(out[0])
        return out

    pipe.scheduler.step = step
    handle = tiny_pipelines.network(pipe).register_forward_pre_hook(count, with_kwargs=True)
    try:
        with torch.no_grad():
            pipe(**{**tiny_pipelines.arguments(name, steps), **changes})
    finally:
        handle.remove()
        del pipe.scheduler.step
    return last[-1], rows


def assert_same(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    """To a fraction of the largest value: states of untrained networks reach hundreds."""
    assert torch.isfinite(one).all()
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.abs().max()))


def network_calls(name: str, width: int, guided: bool, batch: int = 2) -> list[int]:
    """Rows of the network calls of one iteration: guidance doubles the rows, or in Wan the calls."""
    if name == "wan":
        return [batch * width] * (2 if guided else 1)
    return [batch * width * (2 if guided and name not in ("flux", "ddpm") else 1)]


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("name", tiny_pipelines.BUILDERS)
def test_a_fan_is_one_call_and_equals_single_calls(name: str, kind: str) -> None:
    pipe, table, widths = tiny_pipelines.build(name), table_for(name, kind), TABLES[kind][1]
    guided = kind != "memory"
    call: dict[str, Any] = {} if name == "ddpm" else {"guidance_scale": 4.0 if guided else 1.0}
    epd.enable(pipe, table)
    batched, rows = states_and_rows(pipe, name, table.num_steps, **call)
    assert rows == [r for width in widths for r in network_calls(name, width, guided)]
    epd.enable(pipe, table, parallel=False)
    serial, rows = states_and_rows(pipe, name, table.num_steps, **call)
    assert rows == network_calls(name, 1, guided) * sum(widths)
    assert_same(batched, serial)


@pytest.mark.parametrize("name", tiny_pipelines.BUILDERS)
def test_disabled_is_bit_equal_to_never_touched(name: str) -> None:
    untouched = tiny_pipelines.run(tiny_pipelines.build(name), name, 3)
    pipe = tiny_pipelines.build(name)
    stock, config = pipe.scheduler, dict(pipe.config)
    epd.enable(pipe, table_for(name, "epd"))
    assert not torch.equal(tiny_pipelines.run(pipe, name, 4), untouched)
    epd.disable(pipe)
    assert torch.equal(tiny_pipelines.run(pipe, name, 3), untouched)
    assert pipe.scheduler is stock
    assert dict(pipe.config) == config
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            assert not part._forward_pre_hooks
            assert not part._forward_hooks


@pytest.mark.parametrize("name", tiny_pipelines.BUILDERS)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    pipe = epd.enable(tiny_pipelines.build(name), table_for(name, "one-call with afs"))
    together, _ = states_and_rows(pipe, name, 4)
    alone, _ = states_and_rows(pipe, name, 4, **tiny_pipelines.arguments(name, 4, batch=1))
    assert_same(alone[:1], together[:1], 3e-5)


def own_entries(config: Any, kind: type) -> dict[str, Any]:  # noqa: ANN401
    known = inspect.signature(kind.__init__).parameters
    return {k: v for k, v in config.items() if k in known}


def stock_schedulers(name: str, config: Any) -> dict[str, tuple[Any, dict[str, Any]]]:  # noqa: ANN401
    """Schedulers of diffusers, and what makes EPDScheduler the same."""
    if name in tiny_pipelines.FLOWS:
        flow = diffusers.FlowMatchEulerDiscreteScheduler
        return {"flow": (flow(**own_entries(config, flow)), {})}
    ddim = {"clip_sample": False, "timestep_spacing": "trailing"}
    kind = diffusers.DDIMScheduler
    out: dict[str, tuple[Any, dict[str, Any]]] = {
        "ddim": (kind(**{**own_entries(config, kind), **ddim}), {"unit_variance": True})
    }
    if name not in ("dit", "ddpm"):  # their pipelines do not multiply the noise by init_noise_sigma
        kind = diffusers.EulerDiscreteScheduler
        for spacing in ("trailing", "leading", "linspace"):
            out[spacing] = (kind(**{**own_entries(config, kind), "timestep_spacing": spacing}), {})
    return out


@pytest.mark.parametrize("name", tiny_pipelines.BUILDERS)
def test_rule_euler_is_the_stock_scheduler(name: str) -> None:
    pipe = tiny_pipelines.build(name)
    for stock, changes in stock_schedulers(name, pipe.scheduler.config).values():
        pipe.scheduler = stock
        theirs = tiny_pipelines.run(pipe, name, 4)
        pipe.scheduler = epd.EPDScheduler.from_config(stock.config, rule="euler", **changes)
        assert_same(tiny_pipelines.run(pipe, name, 4), theirs)
