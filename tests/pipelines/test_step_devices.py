"""EPDScheduler.step and the fan's rows on an accelerator that is not there: nothing mixes devices, nothing waits."""

from __future__ import annotations

import pytest
import torch
from helpers.fake_devices import FakeDevices, Unlinked
from helpers.tables import FAMILIES

import epd
from epd.solvers.graphs import NoHostWork

CONFIG = {"prediction_type": "v_prediction", "beta_schedule": "linear"}


@pytest.mark.parametrize("placement", ["serial", "batched"])
@pytest.mark.parametrize("name", ["epd", "plugin, AFS", "anchor and memory", "one call", "mixed calls, AFS", "dense"])
def test_no_step_waits_for_the_device_or_mixes_devices(name: str, placement: str) -> None:
    table, calls = FAMILIES[name], 0
    scheduler = epd.EPDScheduler.from_table(table, CONFIG)
    scheduler.placement = placement  # type: ignore[assignment]
    scheduler.set_timesteps(table.depth if placement == "batched" else table.nfe)
    with FakeDevices(allow_non_fake_inputs=True), Unlinked():
        scheduler.timesteps = torch.empty(len(scheduler.calls), device="cuda")
        scheduler._network_times = [torch.empty(len(c.timestep), device="cuda") for c in scheduler.calls]
        x = torch.empty(5, 2, 3, 3, device="cuda", dtype=torch.float16) * scheduler.init_noise_sigma
        scheduler.set_begin_index(0)
        with NoHostWork(), torch.no_grad():
            for timestep in scheduler.timesteps.unbind():
                wide, rows = scheduler.wide_call, torch.cat([x, x])  # guidance by a doubled call
                if wide is not None:
                    rows = scheduler.spread(rows)
                    assert wide.timesteps.device.type == rows.device.type == "cuda"
                output = rows.chunk(2)[0] * 0.5
                x = scheduler.step(output, timestep, x, return_dict=False)[0]
                calls += 1
    assert calls == len(scheduler.calls) and (x.device.type, x.dtype, x.shape) == ("cuda", torch.float16, (5, 2, 3, 3))
