"""enable(graphs=...): a pipeline's network calls replayed, through a graph that runs again into the same tensors."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
from typing import Any

import pytest
import torch
from helpers.pipeline_tables import table_for
from helpers.tiny_pipelines import build, network, run

import epd
from epd.solvers.graphs import EagerGraph

made: list[EagerGraph] = []


def graph() -> EagerGraph:
    made.append(EagerGraph())
    return made[-1]


@pytest.fixture(autouse=True)
def none_made() -> None:
    made.clear()


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_anchor_and_fan_are_recorded_once_and_the_pictures_stay(name: str) -> None:
    table = table_for(name, "epd")
    expected = run(epd.enable(build(name), table), name, 4)
    pipe = epd.enable(build(name), table, graphs=graph)
    before = inspect.signature(type(network(pipe)).forward).parameters
    assert [*inspect.signature(network(pipe).forward).parameters] == [*before][1:]
    for _ in range(2):
        assert torch.equal(run(pipe, name, 4), expected)
        assert len(made) == 2
    epd.disable(pipe)
    assert "forward" not in vars(network(pipe))
    epd.enable(pipe, table)
    assert torch.equal(run(pipe, name, 4), expected) and len(made) == 2


def test_compiled_networks_give_the_same_pictures() -> None:
    table, graphs = table_for("sd3", "epd"), []

    def compiled() -> epd.CompiledGraph:
        graphs.append(epd.CompiledGraph("eager"))
        return graphs[-1]

    expected = run(epd.enable(build("sd3"), table), "sd3", 4)
    pipe = epd.enable(build("sd3"), table, graphs=compiled)
    for _ in range(2):
        assert torch.equal(run(pipe, "sd3", 4), expected) and len(graphs) == 2


def test_what_changed_in_the_network_is_recorded_again() -> None:
    table, pipe, plain = table_for("sd", "epd"), build("sd"), build("sd")
    epd.enable(pipe, table, graphs=graph)
    epd.enable(plain, table)
    run(pipe, "sd", 4)
    for unet in (network(pipe), network(plain)):  # in place: the graph reads it
        unet.conv_out.weight.data.mul_(1.5)
    assert torch.equal(run(pipe, "sd", 4), run(plain, "sd", 4)) and len(made) == 2
    for unet in (network(pipe), network(plain)):  # another tensor, and a setting
        unet.conv_out.weight = torch.nn.Parameter(unet.conv_out.weight.detach() * 2)
    assert torch.equal(run(pipe, "sd", 4), run(plain, "sd", 4)) and len(made) == 4
    for unet in (network(pipe), network(plain)):
        unet.mid_block.resnets[0].output_scale_factor = 0.5
    assert torch.equal(run(pipe, "sd", 4), run(plain, "sd", 4)) and len(made) == 6


def test_the_network_belongs_to_others_too() -> None:
    """Calls by anybody else run as they are; copies are their own networks; a pipeline that is gone leaves nothing."""
    pipe = epd.enable(build("sd"), table_for("sd", "epd"), graphs=graph)
    unet = network(pipe)
    x = {"sample": torch.ones(3, 4, 8, 8), "timestep": torch.tensor(5.0), "encoder_hidden_states": torch.ones(3, 7, 32)}
    with torch.no_grad():
        expected = type(unet).forward(unet, **x).sample
        assert torch.equal(unet(**x).sample, expected) and not made
        for copied in (copy.deepcopy(unet), pickle.loads(pickle.dumps(unet))):
            copied.conv_out.weight.data.zero_()
            copied.conv_out.bias.data.fill_(3.0)
            assert torch.equal(copied(**x).sample, torch.full_like(expected, 3.0))
        assert torch.equal(unet(**x).sample, expected)
    del pipe
    gc.collect()
    assert "forward" not in vars(unet)


def test_what_stands_in_for_forward_already_is_left(caplog: pytest.LogCaptureFixture) -> None:
    pipe, calls = build("sd"), []
    own = network(pipe).forward

    def offloaded(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        calls.append(1)
        return own(*args, **kwargs)

    network(pipe).forward = offloaded
    epd.enable(pipe, table_for("sd", "epd"), graphs=graph)
    run(pipe, "sd", 4)
    assert len(calls) == 8 and not made
    assert "the pipeline's unet is not replayed from graphs: something else stands in for its forward" in caplog.text
    epd.disable(pipe)
    assert network(pipe).forward is offloaded


def test_on_a_processor_it_says_why_not(caplog: pytest.LogCaptureFixture) -> None:
    table = table_for("sd", "epd")
    pipe = epd.enable(build("sd"), table, graphs=True)
    assert torch.equal(run(pipe, "sd", 4), run(epd.enable(build("sd"), table), "sd", 4))
    (record,) = caplog.records
    assert "unet is not replayed from graphs: the tensors lie on cpu" in record.getMessage()


def test_answers_of_a_pipeline() -> None:
    pipe, table = build("sd"), table_for("sd", "epd")
    for answer in ("batched", "serial"):
        assert epd.summary(epd.enable(pipe, table, answer=answer)).placement == answer  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"answer = 'streams': .* serial or auto, or solve epd.from_pipeline\(pipe\)"):
        epd.enable(pipe, table, answer="streams")  # type: ignore[arg-type]
    for answer in ("batched", "auto"):
        with pytest.raises(ValueError, match=f"answer = '{answer}' is not parallel = False: leave one"):
            epd.enable(pipe, table, parallel=False, answer=answer)  # type: ignore[arg-type]
