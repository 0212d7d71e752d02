"""YAML configs: what they may hold, who wins, and that every fault is told with its path, value and hint."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers.command import Run

import epd
from epd import cli
from epd.commands.inputs import model_options
from epd.commands.options import Compare, Distill, ModelArguments, Sample
from epd.commands.yaml_config import ConfigError, load_config, read_yaml
from epd.distill.config import DistillConfig, Learned

CONFIGS = sorted((Path(epd.__file__).parent / "experiments" / "configs").glob("*.yaml"))
CONFIGS = [path for path in CONFIGS if not path.stem.startswith("evaluate-")]  # of another command


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "c.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_config_holds_any_option_by_its_name(tmp_path: Path) -> None:
    text = "model: digits-exact\ncalls: 7\nlr: 1e-3\ndry-run: true\nlearn: [nodes, weights]\n"
    text += "labels: [1, 2]\nout: runs/y\n"
    found = load_config(written(tmp_path, text), Distill)
    learn: tuple[Learned, ...] = ("nodes", "weights")
    expected = Distill(
        model="digits-exact", calls="7", lr=1e-3, dry_run=True, learn=learn, labels=(1, 2), out=Path("runs/y")
    )
    assert found == expected
    assert found.distill_config() == DistillConfig(calls=7, lr=1e-3, learn=learn)


def test_an_empty_config_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "# nothing yet\n"), Distill) == Distill()


def test_the_command_line_wins(tmp_path: Path) -> None:
    path = written(tmp_path, "calls: 7\npoints: 3\nresume: true\nlearn: [nodes]\n")
    words = ["--config", str(path), "--calls", "9", "--learn", "weights", "sigmas", "--no-resume"]
    options = cli._parse("distill", words)
    assert (options.calls, options.points, options.resume, options.learn) == ("9", "3", False, ("weights", "sigmas"))
    assert cli._parse("distill", [f"--config={path}"]).calls == "7"


def test_every_default_of_a_config_survives_a_round_trip(tmp_path: Path) -> None:
    for schema in (Distill, Sample, Compare):
        text = yaml.safe_dump(schema().model_dump(mode="json", exclude={"config"}))
        assert load_config(written(tmp_path, text), schema) == schema()


def test_options_are_a_mapping_in_yaml_and_json_on_the_command_line(tmp_path: Path, run: Run) -> None:
    path = written(tmp_path, "options:\n  use_resolution_binning: false\n  max_sequence_length: 16\n")
    told = {"use_resolution_binning": False, "max_sequence_length": 16}
    options = cli._parse("distill", ["--config", str(path)])
    assert options.options == told and model_options(options).options == told
    assert cli._parse("sample", ["--config", str(path), "--options", '{"clip_skip": 1}']).options == {"clip_skip": 1}
    assert cli._parse("compare", []).options is None
    for wrong in ("[1]", "clip_skip=1", "5"):
        code, _, err = run("distill", "--options", wrong)
        assert code == cli.USAGE and "needed a mapping" in " ".join(err.replace("│", " ").split())
    code, _, err = run("distill", "--options", '{"clip_skip": 1}', "--dry-run")
    assert code == cli.FAILED and "the embedded model 'digits' has no such option" in err


def test_no_option_of_the_model_shadows_one_of_the_distillation() -> None:
    assert not set(ModelArguments.model_fields) & set(DistillConfig.model_fields)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_the_shipped_configs_are_configs_of_distill(path: Path) -> None:
    options = load_config(path, Distill)
    assert options.family == "epd" and options.model == read_yaml(path)["model"]


FAULTS = {
    "unknown key": ("iteratons: 3", ["unknown key 'iteratons'", "perhaps you meant 'iterations'"]),
    "unlike anything": ("zzzzz: 3", ["unknown key 'zzzzz'", "known are"]),
    "out of range": ("validation: 0", ["validation = 0", "greater than or equal to 1", "the default is 1024"]),
    "no points": ("points: 99", ["points = 99", "auto, a number from 1 to 16, or several, as in 1,2,3"]),
    "no points either": ("points: [1, x]", ['points = [1, "x"]', "auto, a number from 1 to 16"]),
    "no counts": ("calls: 3,x", ['calls = "3,x"', "a number from 1 to 200, or several, as in 3,5,7,9"]),
    "wrong type": ("pool: many", ['pool = "many"', "valid integer"]),
    "wrong choice": ("family: epd-plugn", ['family = "epd-plugn"', "perhaps you meant 'epd-plugin'"]),
    "no mapping": ("options: 5", ["options = 5", "needed a mapping", "clean_caption"]),
    "an unnamed option": ("options: {2: 3}", ["options = ", "needed a mapping"]),
    "inside a list": ("learn: [nodes, wieghts]", ['learn.1 = "wieghts"', "perhaps you meant 'weights'"]),
    "two fields at odds": ("batch: 4096\npool: 1024", ["batch = 4096 exceeds pool = 1024"]),
    "nan": ("lr: .nan", ["lr = NaN"]),
    "twice": ("calls: 3\ncalls: 5", [":2:", "the key 'calls' occurs twice"]),
    "a list": ("- calls", ["holds list", "such as `calls: 5`"]),
    "a number": ("5", ["holds int"]),
    "numbered keys": ("5: calls", ["holds dict"]),
    "a syntax error": ("calls: 3\n points: [1\n", [":2:", "no valid YAML"]),
    "a list as a key": ("? [a, b]\n: 3", [":1:", "a key is a list or a mapping, not a name"]),
    "a mapping as a key": ("? {a: b}\n: 3", [":1:", "a key is a list or a mapping, not a name"]),
    "a date that is none": ("calls: !!timestamp soon", ["no valid YAML"]),
    "a tag": ("calls: !!python/object/apply:os.system [exit]", [":1:", "no valid YAML"]),
    "not text": (b"\xff\xfe\x00", ["not UTF-8"]),
    "a control character": ("calls: \x07", ["no valid YAML"]),
    "too large": (b"#" * (2**20 + 1), ["more than 1048576"]),
    "deep": ("[" * 5000, ["no valid YAML"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_names_path_value_and_hint(name: str, tmp_path: Path) -> None:
    text, parts = FAULTS[name]
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(path, Distill)
    message = str(error.value)
    assert message.startswith(str(path)) and all(part in message for part in parts), message
    assert len(message.splitlines()) == 1


def test_all_faults_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "points: 99\ncals: 3\n")
    assert cli.main(["distill", "--config", str(path)]) == cli.USAGE
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:3] for line in lines] == [["epd", "error", str(path)]] * 2
    assert "points = 99" in lines[0] and "perhaps you meant 'calls'" in lines[1]


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_an_unreadable_config_is_one_error(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", "--config", str(tmp_path / name)]) == cli.USAGE
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("epd: error: ") and "cannot be read" in error
