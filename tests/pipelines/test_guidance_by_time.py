"""Guidance that depends on the time of a call: the points of a fan have one each, and get the guidance of their own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import AdaptiveProjectedGuidance
from helpers.list_and_packed_pipelines import embeddings, z_image
from helpers.pipeline_tables import SMALL, assert_same, seeds, table_for, variant
from helpers.tiny_cogvideox import cogvideox
from helpers.tiny_pipelines import diffusers, network
from torch import Tensor

import epd
from epd.pipelines.placement import placed

CALLS = 16  # of four steps with three points, one after another
VIDEO = {"height": 64, "width": 64, "num_frames": 5, "output_type": "latent", "return_dict": False}
TEXTS = {"prompt_embeds": embeddings(1), "negative_prompt_embeds": embeddings(2)}
LISTS = {name: [*rows] for name, rows in TEXTS.items()}


def perturbed() -> Any:  # noqa: ANN401
    return variant(diffusers.StableDiffusionPAGPipeline, pag_applied_layers=["mid"])


CASES: list[tuple[str, str, Callable[[], Any], dict[str, Any], dict[str, Any], bool]] = [
    ("sd", "pag_adaptive_scale", perturbed, {**SMALL, "pag_scale": 3.0}, {"pag_adaptive_scale": 0.003}, True),
    ("sd", "use_dynamic_cfg", cogvideox, {**VIDEO, **TEXTS, "guidance_scale": 6.0}, {"use_dynamic_cfg": True}, True),
    (  # its list of states is a reason of its own
        "flux", "guidance counts the entries", z_image,
        {**LISTS, "height": 64, "width": 64, "output_type": "latent", "return_dict": False, "guidance_scale": 3.0},
        {"cfg_truncation": 0.4}, False,
    ),
]  # fmt: skip


def made_by(pipe: Any, call: dict[str, Any]) -> tuple[Tensor, int, list[str]]:  # noqa: ANN401
    """The latents, the number of network calls, and what was said."""
    pipe.set_progress_bar_config(disable=True)
    counted: list[int] = []
    handle = network(pipe).register_forward_hook(lambda *_: counted.append(1))
    with warnings.catch_warnings(record=True) as said, torch.no_grad():
        warnings.simplefilter("always")
        out = pipe(**call, num_inference_steps=CALLS, **seeds())[0]
    handle.remove()
    return out, len(counted), [str(w.message) for w in said]


@pytest.mark.parametrize(("path", "reason", "make", "call", "option", "otherwise"), CASES, ids=[c[1] for c in CASES])
def test_5_guidance_by_time_is_serial_and_says_so_once(
    path: str, reason: str, make: Callable[[], Any], call: dict[str, Any], option: dict[str, Any], otherwise: bool
) -> None:
    table = table_for(path, "epd")
    serial, calls, said = made_by(epd.enable(make(), table, parallel=False), call | option)
    assert calls == CALLS
    assert not [text for text in said if reason in text]
    pipe = epd.enable(make(), table)
    results = [made_by(pipe, call | option) for _ in range(2)]
    for batched, calls, _ in results:
        assert calls == CALLS
        assert_same(batched, serial)
    assert [sum(reason in text for text in said) for _, _, said in results] == [1, 0]
    plain, calls, _ = made_by(pipe, call)
    assert calls == (8 if otherwise else CALLS)
    assert not torch.allclose(plain, serial, atol=1e-3 * float(serial.abs().max()))


@pytest.mark.parametrize("momentum", [-0.5, None])
def test_5_a_guider_with_momentum_keeps_rows_from_call_to_call(momentum: float | None) -> None:
    pipe = epd.enable(variant(diffusers.StableDiffusionPipeline), table_for("sd", "epd"))
    guider = AdaptiveProjectedGuidance(adaptive_projected_guidance_momentum=momentum)
    parts = SimpleNamespace(components={**pipe.components, "guider": guider}, __call__=pipe.__call__)
    placement, note = placed(parts, True)
    assert placement == ("batched" if momentum is None else "serial")
    assert ("momentum" in note) == (momentum is not None)
