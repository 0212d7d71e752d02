"""Learned solvers saved beside a pipeline, on their own, and on the hub: exact round trips, nothing else touched."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_pipelines
from helpers.tables import dense_table
from helpers.tiny_pipelines import diffusers

import epd
from epd.pipelines.denoiser import PipelineModel
from epd.pipelines.enable import disable, enable
from epd.pipelines.find import find_table
from epd.pipelines.loading import load_model, load_pipeline
from epd.pipelines.options import ModelOptions, read_prompts
from epd.pipelines.picture import draw
from epd.pipelines.scheduler import EPDScheduler
from epd.pipelines.sharing import load_learned, save_learned
from epd.solvers.named import named_table


def small_table(path: str = "ve", **changes: Any) -> epd.Table:  # noqa: ANN401 - any field
    provenance = epd.Provenance(model="me/tiny", path=path, guidance=3.0, metrics={"rmse": 0.25}, citation="a | b")
    first = {"ve": [12.0, 3.0, 0.1], "flow": [1.0, 0.6, 0.01]}[path]
    values: dict[str, Any] = {
        "sigmas": first, "nodes": [[0.3, 0.7], [0.1, 1 / 3]], "weights": [[0.4, 0.6], [0.1, 0.9]],
        "provenance": provenance,
    }  # fmt: skip
    return epd.Table(**{**values, **changes})


def picture_of(pipe: Any, name: str) -> torch.Tensor:  # noqa: ANN401 - any pipeline
    call: dict[str, Any] = {"generator": torch.Generator().manual_seed(5), "output_type": "np"}
    call["num_inference_steps"] = tiny_pipelines.calls_of(pipe, 2)
    if name == "dit":
        return torch.as_tensor(pipe(class_labels=[1], **call).images)
    sizes = {"height": 64, "width": 64, **({"max_sequence_length": 16} if name in ("sd3", "flux") else {})}
    return torch.as_tensor(pipe("a red fox", **sizes, **call).images)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_pipelines.build("sd").save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_pipeline_beside_it_is_untouched(saved: Path) -> None:
    before = contents(saved)
    table = small_table()
    assert save_learned(table, saved) == saved / "epd_scheduler"
    after = contents(saved)
    assert {k: after[k] for k in before} == before
    assert sorted(set(after) - set(before)) == [
        "README.md", "epd_scheduler/scheduler_config.json", "epd_scheduler/solver.json", "epd_scheduler/solver.png",
    ]  # fmt: skip
    assert find_table(saved) == table
    scheduler: Any = EPDScheduler.from_pretrained(saved, subfolder="epd_scheduler")
    assert scheduler.table == table
    assert scheduler.config["beta_schedule"] == "scaled_linear"


@pytest.mark.parametrize("name", ["sd", "sd3", "flux", "dit"])
def test_a_saved_solver_gives_the_same_pictures(tmp_path: Path, name: str) -> None:
    pipe = tiny_pipelines.build(name)
    plain = picture_of(pipe, name)
    path = "flow" if name in ("sd3", "flux") else "ve"
    table = small_table(path, provenance=epd.Provenance(path=path))  # of no certain model, so that none is a wrong one
    pipe.save_pretrained(tmp_path)
    enable(pipe, table)
    wanted = picture_of(pipe, name)
    save_learned(pipe, tmp_path)
    disable(pipe)
    assert torch.equal(picture_of(pipe, name), plain)
    assert load_learned(pipe, tmp_path) == table
    assert torch.equal(picture_of(pipe, name), wanted)
    again = load_pipeline(tmp_path, ModelOptions(network_dtype="float32", device="cpu", local_only=True))
    torch.testing.assert_close(picture_of(again, name), plain, rtol=0, atol=1e-5)
    load_learned(again, tmp_path)
    torch.testing.assert_close(picture_of(again, name), wanted, rtol=0, atol=1e-5)
    if name == "dit":  # it never scales its noise, so that a bare scheduler starts from the stock one's state
        return
    scheduler: Any = EPDScheduler.from_pretrained(tmp_path, subfolder="epd_scheduler")
    bare = type(pipe).from_pretrained(tmp_path, scheduler=scheduler, local_files_only=True)
    bare.set_progress_bar_config(disable=True)
    torch.testing.assert_close(picture_of(bare, name), wanted, rtol=0, atol=1e-5)


def test_plain_users_load_the_repository_without_us(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_learned(small_table(), saved)
    for name in [name for name in sys.modules if name.split(".")[0] == "epd"]:
        monkeypatch.setitem(sys.modules, name, None)  # whoever imports it is told that it isn't there
    with pytest.raises(ImportError):
        importlib.import_module("epd.pipelines.scheduler")
    pipe = diffusers.DiffusionPipeline.from_pretrained(saved, local_files_only=True)
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"


def test_a_table_alone_needs_no_scheduler(tmp_path: Path) -> None:
    table = named_table("sd15-rdpo-10x2")
    save_learned(table, tmp_path / "one")
    assert sorted(contents(tmp_path / "one")) == ["README.md", "epd_scheduler/solver.json", "epd_scheduler/solver.png"]
    assert find_table(tmp_path / "one") == table
    assert 'from_pretrained("one"' not in (tmp_path / "one" / "README.md").read_text()
    save_learned(table, tmp_path / "two", scheduler_config=dict(tiny_pipelines.build("sd").scheduler.config))
    scheduler: Any = EPDScheduler.from_pretrained(tmp_path / "two", subfolder="epd_scheduler")
    assert scheduler.table == table


def test_nothing_of_another_solver_stays_beside_a_table(saved: Path) -> None:
    save_learned(epd.enable(tiny_pipelines.build("sd"), small_table()), saved / "x", picture=draw(small_table()))
    assert {"epd_scheduler/scheduler_config.json", "epd_scheduler/samples.png"} <= contents(saved / "x").keys()
    table = named_table("sd15-rdpo-10x2")
    save_learned(table, saved / "x")
    assert find_table(saved / "x") == table
    assert sorted(contents(saved / "x")) == ["README.md", "epd_scheduler/solver.json", "epd_scheduler/solver.png"]


def test_card(saved: Path) -> None:
    save_learned(small_table(), saved, metrics={"fid": 12.5}, base_model="me/tiny", picture=draw(small_table()))
    text = (saved / "README.md").read_text()
    for part in (
        "library_name: diffusers", 'base_model: "me/tiny"', "| rmse | 0.25 |", "| fid | 12.5 |", "| guidance | 3 |",
        "| citation | a \\| b |", "epd_scheduler/solver.png", "epd_scheduler/samples.png",
        'epd.load_learned(pipe, "pipe")', 'num_inference_steps=epd.summary(pipe).depth',
        "| 1 | 12 | 3 | 0.0000 | 0.3000: 0.4000 | 0.7000: 0.6000 |", small_table().digest,
        "2 steps, 2 points: 4 sequential calls, 6 evaluations",
    ):  # fmt: skip
        assert part in text
    save_learned(small_table(), saved, metrics={"fid": 11.5})
    assert "| fid | 11.5 |" in (saved / "README.md").read_text()


def test_a_table_that_begins_without_a_call(saved: Path) -> None:
    table = dense_table()
    save_learned(table, saved)
    assert find_table(saved) == table
    text = (saved / "README.md").read_text()
    assert "4 steps, 1 point: 3 sequential calls, 6 evaluations, analytic first step" in text


def test_somebody_elses_readme_stays(saved: Path) -> None:
    (saved / "README.md").write_text("# Mine\n")
    save_learned(small_table(), saved)
    assert (saved / "README.md").read_text() == "# Mine\n"
    assert "(solver.png)" in (saved / "epd_scheduler" / "README.md").read_text()


class StubApi:
    """What is used of `huggingface_hub.HfApi`."""

    calls: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012

    def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> Any:  # noqa: ANN401
        self.calls.append(("create", {"repo_id": repo_id, "private": private}))
        return dataclasses.make_dataclass("Url", ["repo_id"])(f"me/{repo_id.split('/')[-1]}")

    def upload_folder(self, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str) -> None:
        self.calls.append(("upload", {"repo_id": repo_id, "allow": allow_patterns}))


def test_push_uploads_only_what_is_ours(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", StubApi)
    StubApi.calls.clear()
    save_learned(small_table(), saved, push_to_hub=True, private=True)
    save_learned(small_table(), saved, push_to_hub=True, repo_id="me/solvers")
    assert StubApi.calls == [
        ("create", {"repo_id": "pipe", "private": True}),
        ("upload", {"repo_id": "me/pipe", "allow": ["epd_scheduler/*", "README.md"]}),
        ("create", {"repo_id": "me/solvers", "private": None}),
        ("upload", {"repo_id": "me/solvers", "allow": ["epd_scheduler/*", "README.md"]}),
    ]
    assert 'epd.load_learned(pipe, "me/solvers")' in (saved / "README.md").read_text()
    with pytest.raises(ValueError, match="push_to_hub is False"):
        save_learned(small_table(), saved, repo_id="me/solvers")


def test_a_hub_id_downloads_the_table_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_learned(small_table(), tmp_path)
    asked: list[tuple[str, str, str | None]] = []

    def download(repo_id: str, filename: str, revision: str | None) -> str:
        asked.append((repo_id, filename, revision))
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert find_table("me/solvers", "v1") == small_table()
    assert asked == [("me/solvers", "epd_scheduler/solver.json", "v1")]


def test_what_cannot_be_found_says_so(tmp_path: Path) -> None:
    assert find_table("sd15-rdpo-10x2") == named_table("sd15-rdpo-10x2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither epd_scheduler/solver.json nor solver.json"):
        find_table(tmp_path / "empty")
    with pytest.raises(ValueError, match="no published table is named 'sd15-rdpo'"):
        find_table("sd15-rdpo")
    with pytest.raises(ValueError, match="no readable epd_scheduler/solver.json on the hub.*offline"):
        find_table("nobody/nothing")
    with pytest.raises(ValueError, match="DDIMScheduler, which has no learned table"):
        save_learned(tiny_pipelines.build("sd"), tmp_path)


def test_models_from_saved_pipelines(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red fox\n\n  snow  \n")
    prompts = read_prompts(tmp_path / "prompts.txt")
    assert prompts == ["a red fox", "snow"]
    half = ModelOptions(network_dtype="bfloat16", device="cpu", local_only=True)
    how = {"prompts": tmp_path / "prompts.txt", "guidance": 2.0, "resolution": 64}
    model = load_model(saved, half.model_copy(update=how))
    assert isinstance(model, PipelineModel)
    assert (model.name, model.dtype, model.shape, model.guidance) == (str(saved), torch.bfloat16, (4, 8, 8), 2.0)
    assert model.request.count == 2
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(ValueError, match="has no prompt"):
        read_prompts(tmp_path / "none.txt")


def test_variants_are_loaded(tmp_path: Path) -> None:
    tiny_pipelines.build("dit").save_pretrained(tmp_path, variant="fp16")
    pipe = load_pipeline(tmp_path, ModelOptions(variant="fp16", device="cpu", local_only=True))
    assert picture_of(pipe, "dit").shape == (1, 64, 64, 3)
    with pytest.raises(ValueError, match="could not be loaded as a pipeline"):
        load_pipeline(tmp_path, ModelOptions(variant="fp8", device="cpu", local_only=True))


def test_pickled_weights_are_refused(saved: Path) -> None:
    weights = saved / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({"x": torch.zeros(1)}, weights.with_name("diffusion_pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(ValueError, match="could not be loaded as a pipeline"):
        load_pipeline(saved, ModelOptions(device="cpu", local_only=True))


def test_code_in_a_repository_is_not_run(saved: Path) -> None:
    (saved / "unet" / "evil.py").write_text(f"open({str(saved / 'canary')!r}, 'w')\nclass Evil: ...\n")
    index = json.loads((saved / "model_index.json").read_text())
    (saved / "model_index.json").write_text(json.dumps({**index, "unet": ["evil", "Evil"]}))
    with pytest.raises(ValueError, match="could not be loaded as a pipeline"):
        load_pipeline(saved, ModelOptions(device="cpu", local_only=True))
    assert not (saved / "canary").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network_dtype": "int8"}, "network_dtype\n.*'float32', 'float16' or 'bfloat16'"),
        ({"offload": "disk"}, "offload\n.*'none', 'model', 'sequential' or 'group'"),
        ({"device_map": "balanced", "device": "cpu"}, "device_map places every part itself"),
    ],
)
def test_how_to_load_is_checked(changes: dict[str, Any], message: str, saved: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_pipeline(saved, ModelOptions(**changes))


def test_what_is_no_pipeline_says_so(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="offload = 'model' keeps weights on the CPU for an accelerator"):
        load_pipeline(saved, ModelOptions(device="cpu", offload="model", local_only=True))
    with pytest.raises(ValueError, match="has no model_index.json"):
        load_pipeline(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is a single file"):
        load_pipeline(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="nobody/nothing could not be loaded.*offline, give a local folder"):
        load_pipeline("nobody/nothing", ModelOptions(local_only=True))
