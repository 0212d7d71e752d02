"""Learned tables and hand-made rules in ten unmodified pipelines."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from helpers import tiny_pipelines
from helpers.pipeline_tables import TABLES, assert_same, states_and_rows, table_for
from helpers.tiny_pipelines import diffusers

import epd


def network_calls(name: str, width: int, guided: bool, batch: int = 2) -> list[int]:
    """Rows of the network calls of one iteration: guidance doubles the rows, or in Wan the calls."""
    if name == "wan":
        return [batch * width] * (2 if guided else 1)
    return [batch * width * (2 if guided and name not in ("flux", "ddpm") else 1)]


# Every layout of calls where loops differ: guidance in one call, in two, and none. Elsewhere layouts that have no
# branch of their own are left to `test_a_pipeline_with_a_table_is_solve_on_its_model`.
FEW = ("epd", "memory", "one-call with afs", "mixed")


@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, k) for n in tiny_pipelines.BUILDERS for k in TABLES if n in ("sd", "wan", "flux") or k in FEW],
)
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
