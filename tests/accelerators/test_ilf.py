"""Inner-loop feedback: scales of 0 change no bit, blocks are counted, the formula by hand, files that are not ours."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import feedback, tiny_pipelines
from helpers.accelerating import drivers, told, traces
from helpers.pipeline_tables import assert_same, table_for
from safetensors.torch import load_file, save_file
from torch import Tensor

import epd
from epd.accelerators import planned
from epd.accelerators.cost import together
from epd.accelerators.feedback_block import KEY, Feedback, Loop, load_feedback, read_trained, save_feedback
from epd.accelerators.names import from_json, parse, spelt, to_json
from epd.denoisers.digits import digits
from epd.solvers.rules import euler

OTHER_STEPS = pytest.mark.filterwarnings("ignore:the feedback was learned for 4 solver steps")
B, L, D = 1, 2, feedback.DEPTH


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "feedback.safetensors"


@OTHER_STEPS
@pytest.mark.parametrize("name", ["dit", "pixart", pytest.param("sd3", marks=pytest.mark.slow)])
def test_scales_of_0_are_bit_equal_and_others_are_the_same_in_one_call_or_in_several(name: str, file: Path) -> None:
    pipe, out = feedback.deep(name), dict[str, Tensor]()
    for driver, made in drivers(name, pipe):
        expected, before = made(), traces(pipe)
        feedback.write(tiny_pipelines.network(pipe), file, 0.0)
        epd.accelerate(pipe, epd.ILF(str(file)))
        with epd.measure(pipe, counts=False) as measured:
            assert torch.equal(made(), expected), driver
        shares = [(D + L + 1) / D if call.now.step in (0, 2) else 1 for call in measured.calls]
        assert [call.blocks for call in measured.calls] == shares
        assert measured.store == 0
        feedback.write(tiny_pipelines.network(pipe), file, 0.5)
        epd.accelerate(pipe, epd.ILF(str(file)))
        out[driver] = made()
        assert not torch.allclose(out[driver], expected, rtol=1e-3)
        if driver == "stock":
            assert torch.equal(made(), out[driver])  # nothing is left from the run before
        epd.decelerate(pipe)
        assert traces(pipe) == before
    assert_same(out["batched"], out["serial"], 1e-5)


@pytest.mark.parametrize("name", feedback.FAMILIES)
def test_the_plan_is_what_is_counted(name: str, file: Path) -> None:
    pipe = feedback.deep(name)
    feedback.write(tiny_pipelines.network(pipe), file, 0.1)
    ilf = epd.ILF(str(file), steps=(1, 3))
    epd.accelerate(epd.enable(pipe, table_for(name, "mixed")), ilf)
    with epd.measure(pipe, counts=False) as measured:
        tiny_pipelines.run(pipe, name, 4)
    calls = planned.of_scheduler(pipe, **told(name))
    assert together([ilf.plan(calls)], calls) == measured.calls
    assert measured.cost.blocks > measured.cost.rows


@pytest.mark.parametrize("name", feedback.FAMILIES)
def test_a_call_with_feedback_evaluates_d_l_and_1_blocks_and_the_head_once(
    name: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, counted = feedback.deep(name), Counter[Any]()
    feedback.write(tiny_pipelines.network(pipe), file, 0.1, B, L, (1,))
    for place, block in enumerate(tiny_pipelines.network(pipe).transformer_blocks):
        block.register_forward_hook(lambda *_, place=place: counted.update([place]))
    inner = Feedback.forward

    def forward(self: Feedback, call: Any) -> Any:  # noqa: ANN401
        counted.update(["fed"])
        return inner(self, call)

    monkeypatch.setattr(Feedback, "forward", forward)
    epd.accelerate(epd.enable(pipe, table_for(name, "dense")), epd.ILF(str(file)))
    tiny_pipelines.run(pipe, name, 3)  # steps 1, 2, 3: the first one is analytic
    plain = Counter({place: 3 for place in range(D)})
    assert counted - plain == Counter({"fed": 1, **{place: 1 for place in range(B, B + L)}})
    assert counted.total() == 2 * D + (D + L + 1)


def by_hand(net: Any, fed: Feedback, x: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:  # noqa: ANN401
    """The network with feedback, written out."""
    ahead = torch.full_like(timestep, 300.0)  # at 500, see helpers.feedback

    def block(module: Any, h: Tensor, time: Tensor) -> Tensor:  # noqa: ANN401
        return module(h, timestep=time, class_labels=labels)

    h = block(net.transformer_blocks[0], net.pos_embed(x), timestep)
    inside = block(net.transformer_blocks[2], block(net.transformer_blocks[1], h, timestep), timestep)
    g = block(fed.block, inside, ahead)
    for scale, place in zip((0.3, -0.2), (1, 2), strict=True):
        h = block(net.transformer_blocks[place], h + scale * g, timestep)
    h = block(net.transformer_blocks[3], h, timestep)
    shift, scale = net.proj_out_1(torch.nn.functional.silu(net.transformer_blocks[0].norm1.emb(
        timestep, labels, hidden_dtype=h.dtype))).chunk(2, dim=1)  # fmt: skip
    h = net.proj_out_2(net.norm_out(h) * (1 + scale[:, None]) + shift[:, None])
    rows = h.unflatten(1, (4, 4)).unflatten(3, (2, 2))  # (R, rows, columns, 2, 2) of one channel
    return rows.permute(0, 1, 3, 2, 4).reshape(len(x), 1, 8, 8)


def test_the_answer_is_that_of_the_formula(file: Path) -> None:
    model = digits()
    net = model.networks[0]
    fed = feedback.write(net, file, begin=1, count=2, steps=(0,))
    with torch.no_grad():
        fed.scale.copy_(torch.tensor([0.3, -0.2]))
    save_feedback(file, fed, read_trained(file))
    told: list[Tensor] = []

    def call(x: Tensor, timestep: Tensor, rows: Any) -> Tensor:  # noqa: ANN401
        told.append(timestep)
        return by_hand(net, fed, x, timestep, rows["class_labels"])

    sigma = float(((1 - model.alphas_cumprod[500]) / model.alphas_cumprod[500]).sqrt())  # type: ignore[index]
    noise, sigmas = epd.unit_noise([0, 1], model.shape), [sigma, sigma / 4]
    with torch.no_grad():
        expected = epd.solve(euler(), replace(model, call=call, networks=()).for_seeds([3, 4]), noise, sigmas)
        plain = epd.solve(euler(), model.for_seeds([3, 4]), noise, sigmas)
        epd.accelerate(model, epd.ILF(str(file)))
        with pytest.warns(UserWarning, match="learned for 4 solver steps, this run has 1"):
            made = epd.solve(euler(), model.for_seeds([3, 4]), noise, sigmas)
    assert torch.allclose(told[0], torch.tensor(500.0), atol=1e-2)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(made, plain, rtol=1e-2)


def test_times_between_those_of_the_steps_lie_on_lines() -> None:
    made = Feedback(torch.nn.Linear(1, 1), 1, torch.tensor([900.0, 100.0, 500.0]), torch.tensor([700.0, 10.0, 300.0]))
    asked = torch.tensor([[950, 900, 700], [500, 200, 50]])
    assert made.ahead_of(asked).tolist() == [[700, 700, 500], [300, 82.5, 10]]
    one = Feedback(torch.nn.Linear(1, 1), 1, torch.tensor([9.0]), torch.tensor([4.0]))
    assert one.ahead_of(torch.tensor(7)).item() == 4


def test_a_file_is_read_as_it_was_written_and_named_by_json_and_text(file: Path) -> None:
    net = feedback.deep("dit").transformer
    written = feedback.write(net, file, 0.25)
    read = load_feedback(file, net.transformer_blocks[B])
    assert read.state_dict().keys() == written.state_dict().keys()
    assert all(torch.equal(value, written.state_dict()[name]) for name, value in read.state_dict().items())
    trained = read_trained(file)
    assert trained.loop == Loop("DiTTransformer2DModel", D, B, L, 4, (0, 2))
    assert (trained.sigmas, trained.model, trained.metrics) == ((3.0, 2.0, 1.0, 0.5, 0.1), "tiny", {"rmse": 0.5})
    ilf = epd.ILF("here.safetensors", (3, 1))
    assert ilf.steps == (1, 3) and parse(spelt(ilf)) == ilf == from_json(json.loads(json.dumps(to_json([ilf]))))[0]
    assert parse("ilf:module=x").steps is None  # type: ignore[attr-defined]


def spoilt(file: Path, kind: str) -> None:
    tensors, loop = load_file(file), {"network": "DiTTransformer2DModel", "depth": D, "begin": B, "count": L,
                                      "num_steps": 4, "steps": [0, 2]}  # fmt: skip
    metadata: dict[str, str] | None = None
    match kind:
        case "shape":
            tensors["scale"] = torch.zeros(L + 1)
        case "missing":
            del tensors["block.attn1.to_q.weight"]
        case "more":
            tensors["block.more"] = torch.zeros(1)
        case "nan":
            tensors["scale"] = torch.full((L,), torch.nan)
        case "integers":
            tensors["scale"] = torch.zeros(L, dtype=torch.int64)
        case "times":
            tensors["timesteps"] = torch.zeros(3)
        case "no times":
            del tensors["timesteps"]
        case "loop":
            loop["count"] = D
        case "text":
            loop["begin"] = "1"
        case "extra":
            loop["more"] = 1
        case "metadata":
            metadata = {"format": "pt"}
        case "no json":
            metadata = {KEY: "{"}
    told = {KEY: json.dumps({"loop": loop, "sigmas": [], "model": "", "metrics": {}})}
    save_file(tensors, file, told if metadata is None else metadata)


KINDS = ("shape", "missing", "more", "nan", "integers", "times", "no times", "loop", "text", "extra", "metadata")


@pytest.mark.parametrize("kind", [*KINDS, "no json", "cut short", "no tensors", "empty", "folder", "none"])
def test_a_file_of_another_kind_is_one_clear_error_and_nothing_is_left(kind: str, file: Path) -> None:
    pipe = feedback.deep("dit")
    feedback.write(pipe.transformer, file)
    match kind:
        case "cut short":
            file.write_bytes(file.read_bytes()[:-100])
        case "no tensors":
            file.write_bytes(b"\x80\x04\x95 a pickle")
        case "empty":
            file.write_bytes(b"")
        case "folder" | "none":
            file.unlink()
            _ = file.mkdir() if kind == "folder" else None
        case _:
            spoilt(file, kind)
    before = traces(pipe)
    with pytest.raises(ValueError, match=r"feedback\.safetensors") as raised:
        epd.accelerate(pipe, epd.ILF(str(file)))
    assert kind in ("folder", "none") or "learn it again with `epd distill-feedback`" in str(raised.value)
    assert traces(pipe) == before


def test_other_networks_are_refused(file: Path) -> None:
    feedback.write(feedback.deep("dit").transformer, file)
    for name, text in {"sd": "feedback is not known for UNet2DConditionModel", "dit": "5 blocks, this is a .* of 2",
                       "sd3": "this is a SD3Transformer2DModel"}.items():  # fmt: skip
        with pytest.raises(ValueError, match=text):
            epd.accelerate(tiny_pipelines.build(name), epd.ILF(str(file)))
    pipe = feedback.deep("dit")
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    with pytest.raises(ValueError, match="is compiled"):
        epd.accelerate(pipe, epd.ILF(str(file)))
    with pytest.raises(ValueError, match="do not go together"):
        epd.accelerate(feedback.deep("dit"), epd.ILF(str(file)), epd.ILF(str(file)))


@OTHER_STEPS
def test_what_is_added_between_blocks_or_left_out_is_refused(file: Path) -> None:
    pipe = feedback.deep("sd3")
    feedback.write(pipe.transformer, file, 0.1)
    added = pipe.transformer.transformer_blocks[B + 1].register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "hidden_states": kwargs["hidden_states"] + 1}), with_kwargs=True
    )
    epd.accelerate(pipe, epd.ILF(str(file)))
    with pytest.raises(ValueError, match="between blocks 1 and 2"):
        tiny_pipelines.run(pipe, "sd3", 3)
    added.remove()
    tiny_pipelines.run(pipe, "sd3", 3)
    with pytest.raises(ValueError, match="leaves out blocks of the loop 1 to 2"):
        tiny_pipelines.run(pipe, "sd3", 3, skip_guidance_layers=[B], skip_layer_guidance_stop=1.0)


def test_a_loop_that_costs_two_steps_is_warned_about(file: Path) -> None:
    pipe = feedback.deep("dit")
    feedback.write(pipe.transformer, file, begin=0, count=D)
    with pytest.warns(UserWarning, match=f"evaluates {2 * D + 1} of them, two plain steps {2 * D}.*count <= {D - 2}"):
        epd.accelerate(pipe, epd.ILF(str(file)))
    feedback.write(pipe.transformer, file, begin=0, count=D - 2)
    epd.accelerate(pipe, epd.ILF(str(file)))  # a warning would be an error here


@pytest.mark.parametrize("values", [{"module": ""}, {"module": "x", "steps": ()}, {"module": "x", "steps": (-1,)}])
def test_settings_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give"):
        epd.ILF(**values)
