"""A learned table under diffusers' own context parallelism: each process holds a part of every sequence of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.forked import in_processes
from helpers.pipeline_tables import table_for
from helpers.tiny_pipelines import build, diffusers, run

import epd

SIZE = {"height": 64, "width": 64}  # 64 picture tokens and 16 of text: both are even


def attended(pipe: Any) -> list[int]:  # noqa: ANN401
    """The tokens that each call of the first block is given from now on."""
    seen: list[int] = []
    pipe.transformer.transformer_blocks[0].register_forward_hook(
        lambda module, args, kwargs, out: seen.append(kwargs["hidden_states"].shape[1]), with_kwargs=True
    )
    return seen


def made(kind: str, early: bool, split: bool) -> list[list[Any]]:
    """The latents, and the tokens of each call; enabled early, that is before the tokens are shared, or afterwards."""
    pipe = build("flux")
    if kind != "stock" and early:
        epd.enable(pipe, table_for("flux", kind))
    if split:
        pipe.transformer.enable_parallelism(config=diffusers.ContextParallelConfig(ulysses_degree=2))
    if kind != "stock" and not early:
        epd.enable(pipe, table_for("flux", kind))
    seen = attended(pipe)
    latents = run(pipe, "flux", 4, **SIZE)
    assert kind == "stock" or epd.summary(pipe).placement == "batched"
    return [latents.tolist(), seen]


@pytest.mark.parametrize(
    ("kind", "early"), [("stock", False), ("epd", True), ("epd", False), ("one-call with afs", False)]
)
def test_two_processes_that_share_every_sequence_make_the_pictures_of_one(
    kind: str, early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # diffusers takes the device by the number of accelerators, of which there are none here.
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)

    def work() -> object:
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        try:
            return made(kind, early, True)
        finally:
            dist.destroy_process_group()

    whole, tokens = made(kind, early, False)
    answers: Any = in_processes(work)
    for found, own in answers:
        assert own and [2 * count for count in own] == tokens
        torch.testing.assert_close(torch.tensor(found), torch.tensor(whole), rtol=1e-5, atol=1e-5)
