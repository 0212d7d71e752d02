"""enable(answer="auto"): a fan's call is taken apart where the clock says so; the pictures and the loop stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers import list_and_packed_pipelines
from helpers.pipeline_tables import TABLES, assert_same, table_for
from helpers.tiny_pipelines import build, calls_of, network, run
from torch import Tensor

import epd
from epd.denoisers.arguments import NetworkArguments
from epd.pipelines.choices import Choices, joined
from epd.solvers.auto import ROUNDS, auto
from epd.solvers.graphs import EagerGraph

SERIAL, BATCHED = -1.0, 1.0  # seconds of a network call, by a clock that counts them


def clock(rows: list[int], each: float) -> Callable[[Callable[[], object], torch.device], float]:
    def seconds(work: Callable[[], object], device: torch.device) -> float:
        before = len(rows)
        work()
        return each * (len(rows) - before)

    return seconds


@contextmanager
def enabled(
    pipe: Any,  # noqa: ANN401
    table: epd.Table,
    each: float,
    refused: int = 10**9,
    graphs: Any = False,  # noqa: ANN401
) -> Iterator[list[int]]:
    """Rows of its network's calls, of which it has no memory for so many or more."""
    rows: list[int] = []

    def count(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows.append(len(NetworkArguments(args, kwargs).state))
        if rows[-1] >= refused:
            raise torch.OutOfMemoryError(f"{rows[-1]} rows")

    epd.enable(pipe, table, answer="auto", graphs=graphs)
    pipe.scheduler.choices = Choices(clock(rows, each))
    handle = network(pipe).register_forward_pre_hook(count, with_kwargs=True)  # it sees what ours made of the call
    try:
        yield rows
    finally:
        handle.remove()


def expected_rows(widths: list[int], rows: int, each: float, measured: set[int]) -> list[int]:
    """Of a run whose calls have these widths; a run's first call is made as it is."""
    out: list[int] = []
    for place, k in enumerate(widths):
        whole, apart = [rows * k], [rows] * k
        if place and k > 1 and k not in measured:
            measured.add(k)
            out += (whole + apart) * (1 + ROUNDS)
        out += apart if place and each == SERIAL else whole
    return out


@pytest.mark.parametrize(
    ("name", "kind", "copies", "each"),
    [("sd", "epd", 2, SERIAL), ("sd", "plugin with afs", 2, BATCHED), ("sd3", "mixed", 2, SERIAL),
     ("flux", "one-call with afs", 1, SERIAL)],
)  # fmt: skip
def test_the_faster_way_is_measured_once_and_kept(name: str, kind: str, copies: int, each: float) -> None:
    widths, measured = TABLES[kind][1], set[int]()
    expected = run(epd.enable(build(name), table_for(name, kind)), name, 4)
    pipe = build(name)
    stock = pipe.scheduler
    with enabled(pipe, table_for(name, kind), each) as rows:
        for _ in range(2):
            assert_same(run(pipe, name, 4), expected)
            assert rows == expected_rows(widths, 2 * copies, each, measured)
            rows.clear()
    out = epd.summary(pipe)
    assert (out.placement, out.depth) == ("batched", len(widths))
    verdict = "serial" if each == SERIAL else "batched"
    assert [line.split()[0] for line in out.choices] == [f"{k}" for k in dict.fromkeys(widths[1:]) if k > 1]
    assert all(line.endswith(verdict) and line in str(out) for line in out.choices)
    unet = network(pipe)
    assert epd.disable(pipe).scheduler is stock and not unet._forward_pre_hooks and not unet._forward_hooks


def test_another_shape_is_measured_again_and_what_needs_too_much_memory_is_not_taken() -> None:
    expected = run(epd.enable(build("sd"), table_for("sd", "epd")), "sd", 4)
    pipe = build("sd")
    with enabled(pipe, table_for("sd", "epd"), BATCHED, refused=12) as rows:
        assert_same(run(pipe, "sd", 4), expected)
        assert max(rows[-12:]) == 4
        run(pipe, "sd", 4, height=32, width=32, guidance_scale=1.0)
    found = [(shape, name) for (_, shape, _, _), name in pipe.scheduler.choices.made.items()]
    assert found == [((4, 4, 8, 8), "serial"), ((2, 4, 4, 4), "batched")]


def test_calls_taken_apart_are_replayed_from_graphs() -> None:
    made: list[EagerGraph] = []

    def graph() -> EagerGraph:
        made.append(EagerGraph())
        return made[-1]

    expected = run(epd.enable(build("sd"), table_for("sd", "epd")), "sd", 4)
    pipe = build("sd")
    with enabled(pipe, table_for("sd", "epd"), SERIAL, graphs=graph) as rows:
        for _ in range(2):
            assert_same(run(pipe, "sd", 4), expected)
            assert rows[-12:] == [4] * 12
    # Anchors tell a time for all rows, points one for each: three shapes.
    assert len(made) == 3
    epd.disable(pipe)
    assert "forward" not in vars(network(pipe))


@pytest.mark.slow
def test_compiled_networks_stay_compiled() -> None:
    graphs: list[int] = []

    def backend(graph: Any, inputs: list[Any]) -> Any:  # noqa: ANN401
        def compiled(*arguments: Any) -> Any:  # noqa: ANN401
            graphs.append(1)
            return graph(*arguments)

        return compiled

    expected = run(epd.enable(build("dit"), table_for("dit", "epd")), "dit", 4)
    pipe = build("dit")
    with enabled(pipe, table_for("dit", "epd"), SERIAL) as rows:
        network(pipe).compile(backend=backend)
        assert_same(run(pipe, "dit", 4), expected)
    assert len(graphs) == len(rows)


def test_where_somebody_follows_the_calls_they_stay_whole() -> None:
    expected = run(epd.enable(build("sd"), table_for("sd", "epd")), "sd", 4)
    pipe = build("sd")
    with enabled(pipe, table_for("sd", "epd"), SERIAL) as rows:
        with epd.measure(pipe, counts=False):
            assert torch.equal(run(pipe, "sd", 4), expected)
        assert rows == [4, 12] * 4 and not pipe.scheduler.choices.made


def test_lists_with_one_entry_a_row() -> None:
    pipe = list_and_packed_pipelines.z_image()
    pipe.set_progress_bar_config(disable=True)
    table = table_for("sd3", "epd")
    texts = [*list_and_packed_pipelines.embeddings(0)]

    def picture() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            return pipe(
                prompt_embeds=texts, guidance_scale=0.0, num_inference_steps=calls_of(pipe), generator=generator,
                height=32, width=32, output_type="latent", return_dict=False,
            )[0]  # fmt: skip

    epd.enable(pipe, table)
    expected = picture()
    with enabled(pipe, table, SERIAL) as rows:
        assert_same(picture(), expected)
        assert rows[-4:] == [2] * 4


def test_outputs_of_points_are_joined_sample_major() -> None:
    """Two rows at three points, an output with two entries a row; what has no rows stays."""
    parts = [torch.arange(4).reshape(4, 1) + 10 * k for k in range(3)]
    rows = [0, 1, 10, 11, 20, 21, 2, 3, 12, 13, 22, 23]
    (tensor, kept), named = joined([((p, torch.tensor(7)), {"x": [p]}) for p in parts], 2, False)
    assert tensor.flatten().tolist() == rows == named["x"][0].flatten().tolist() and kept == 7
    (entries, empty) = joined([([f"{k}a", f"{k}b"], {}) for k in range(3)], 2, True)
    assert entries == ["0a", "1a", "2a", "0b", "1b", "2b"] and empty == {}


class Taking(torch.nn.Module):
    """Takes what it adds out of the list that it is given."""

    def forward(self, sample: Tensor, timestep: Tensor, residuals: list[Tensor]) -> Tensor:
        return sample * timestep[:, None] + residuals.pop()


@pytest.mark.parametrize("each", [SERIAL, BATCHED])
def test_what_a_network_takes_out_of_its_arguments_is_there_in_every_call(each: float) -> None:
    """Two rows at two points, the conditioning repeated for each."""
    state, time, residual = torch.arange(4.0)[:, None], torch.tensor([1.0, 3.0, 1.0, 3.0]), torch.tensor([[5.0], [7.0]])
    plain = NetworkArguments((state[:2], time[0]), {"residuals": [residual]})
    call = NetworkArguments((state, time), {"residuals": [residual.repeat_interleave(2, 0)]})
    network, calls = Taking(), list[int]()
    network.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    join = Choices(clock(calls, each)).apply(network, call, plain, 2)
    args, kwargs = call.pair()
    output = network(*args, **kwargs)
    assert (join is not None) == (each == SERIAL)
    assert (output if join is None else join(output)).flatten().tolist() == [5.0, 8.0, 9.0, 16.0]


def test_guidance_that_the_table_scales_is_heard_of_all_points() -> None:
    table = table_for("sd", "epd")
    scaled = dataclasses.replace(table, guidance_scale=[[0.5, 1.0, 1.5]] * 4)
    expected, pipe = run(epd.enable(build("sd"), scaled), "sd", 4), build("sd")
    with enabled(pipe, scaled, SERIAL) as rows:
        assert_same(run(pipe, "sd", 4), expected)
        assert rows[-3:] == [4] * 3
    assert not torch.allclose(run(epd.enable(pipe, table), "sd", 4), expected, atol=1e-2)


def test_a_denoiser_from_a_pipeline_takes_the_same_answer_where_it_is_solved() -> None:
    pipe, table = build("sd"), table_for("sd", "epd")
    model = epd.from_pipeline(pipe, ["a", "b"], height=64, width=64)
    noise = epd.unit_noise(range(2), model.shape)
    with torch.no_grad():
        asked = model.for_seeds(range(2))
        found = [epd.solve(table.rule(), asked, noise, table.sigmas, answer) for answer in (epd.batched, auto())]
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-4)


def test_beside_a_controlnet_calls_stay_whole() -> None:
    """Its residuals are those of all rows."""
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline

    plain = build("sd")
    control = ControlNetModel.from_unet(plain.unet, conditioning_embedding_out_channels=(8, 8, 8, 8)).eval()
    pipe = StableDiffusionControlNetPipeline(**plain.components, controlnet=control, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    with enabled(pipe, table_for("sd", "epd"), SERIAL) as rows:
        run(pipe, "sd", 4, image=torch.zeros(2, 3, 64, 64))
    assert rows == [4, 12] * 4 and not pipe.scheduler.choices.made
