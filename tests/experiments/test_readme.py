"""What the README and the pages of docs show works, and their numbers are those of the result files."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

from epd import cli
from epd.experiments import readme_tables

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in readme_tables.PAGES}
EVERYTHING = "\n".join(TEXTS.values())
RUNNING = [name for name, text in TEXTS.items() if "```python\n" in text]


def blocks(kind: str, text: str = EVERYTHING) -> list[str]:
    """The fenced blocks whose info string is exactly this."""
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_pages_are_these() -> None:
    assert set(TEXTS) == {"README.md", *(path.name for path in DOCS.glob("*.md"))}
    assert len(TEXTS["README.md"].splitlines()) <= 150
    assert {"README.md", "look.md", "own-model.md", "pipelines.md"} <= set(RUNNING)
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert set(re.findall(r": ([\w-]+\.md)$", navigation, re.MULTILINE)) == set(TEXTS) - {"README.md"}


@pytest.mark.parametrize("name", RUNNING)
def test_the_python_blocks_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, object] = {"__name__": "page"}
    for block in blocks("python", TEXTS[name]):
        exec(compile(block, name, "exec"), scope)  # later blocks build on earlier ones, as a reader does
    out = capsys.readouterr().out
    expected = {
        "pipelines.md": "3 steps, 6 sequential network calls",
        "look.md": "Site(step=0, stage=0) 1 points\nSite(step=0, stage=1) 2 points\nSite(step=1, stage=0) 1 points",
    }
    assert expected.get(name, "") in out


def test_the_options_and_modules_that_are_named_exist() -> None:
    from epd.commands import options

    names = {name for command in cli.COMMANDS.values() for name in getattr(options, command.options).model_fields}
    others = {"help", "tyro-print-completion", "logdir", "only"}  # the last two of tensorboard and of the benchmarks
    others |= {"nproc-per-node", "nnodes", "rdzv-backend", "rdzv-endpoint"}  # of torchrun, and of accelerate:
    others |= {"multi-gpu", "num-machines", "num-processes", "machine-rank", "main-process-ip", "main-process-port"}
    mentioned = set(re.findall(r"(?<=[ `])--([a-z][a-z_-]*)", EVERYTHING))
    assert len(mentioned) > 15
    assert {name.replace("_", "-") for name in mentioned} <= {name.replace("_", "-") for name in names} | others
    modules = set(re.findall(r"python -m (epd\.[\w.]+)", EVERYTHING))
    assert len(modules) >= 4 and all(importlib.util.find_spec(module) for module in modules)


def test_the_api_page_has_every_public_name() -> None:
    import epd

    homes = [line.removeprefix("::: ") for line in TEXTS["api.md"].splitlines() if line.startswith("::: ")]
    assert sorted(home.rpartition(".")[2] for home in homes) == sorted(epd.__all__)
    for home in homes:
        module, _, name = home.rpartition(".")
        assert importlib.util.find_spec(home) if name in ("rules", "schedules") else hasattr(
            importlib.import_module(module), name
        )


def test_the_first_two_commands_are_demo_and_test() -> None:
    lines = [line.split("#")[0].strip() for line in blocks("sh", TEXTS["README.md"])[0].splitlines()]
    assert lines == ["make demo", "make test"]


def test_the_epd_commands_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines = [line.split("#")[0] for block in blocks("sh") for line in block.splitlines() if line.startswith("epd ")]
    words = [shlex.split(line.split(">")[0])[1:] for line in lines]
    parsed = 0
    for given in words:
        if given[0].startswith("--"):
            continue
        name = cli._command(given)
        assert name is not None
        cli._parse(name, given[len(name.split()) :])
        parsed += 1
    assert parsed >= 5


def test_the_config_faults_are_told_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from epd.commands.options import Distill
    from epd.commands.yaml_config import ConfigError, load_config

    monkeypatch.chdir(tmp_path)
    shown = [line.removeprefix("epd: error: ") for line in blocks("text")[0].splitlines()]
    for text, line in zip(("iteratons: 3", "validation: 0"), shown, strict=True):
        Path("c.yaml").write_text(text)
        with pytest.raises(ConfigError) as error:
            load_config(Path("c.yaml"), Distill)
        assert str(error.value) == line


def test_the_families_are_those_of_the_code() -> None:
    from epd.distill.families import FAMILIES

    table = TEXTS["learn.md"].split("| family | sequential calls a step |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE)) == set(FAMILIES)


def test_the_table_keys_are_those_of_the_code() -> None:
    from epd.solvers.table_json import FIELDS

    section = TEXTS["tables.md"]
    cells = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    keys = {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}
    assert keys == {*FIELDS, "format", "version"}


def test_the_exit_codes_are_those_of_the_help() -> None:
    rows = re.findall(r"^\| (\d) \| (.*) \|$", TEXTS["command.md"], re.MULTILINE)
    assert [int(code) for code, _ in rows] == [cli.OK, cli.FAILED, cli.USAGE]
    for code, meaning in rows:
        assert f"  {code}  {meaning}" in cli.help_text()


def test_the_numbers_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert readme_tables.main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", TEXTS)
def test_links_to_files_lead_somewhere(name: str) -> None:
    folder = ROOT if name == "README.md" else DOCS
    for target in re.findall(r"\]\(([^)]+)\)", TEXTS[name]):
        assert target.startswith("https://") or (folder / target).exists(), target


def test_filling_replaces_only_what_is_marked(tmp_path: Path) -> None:
    text = "a 1\n<!-- results:benchmark-overhead -->\nold\n<!-- /results -->\nb 2\n"
    row = {"what": "solve", "ms": 10.02, "ms_low": 9.7, "ms_high": 11.5, "floor_ms": 9.512, "ratio": 1.0536}
    result = {"rows": [row], "environment": {"python": "3.11"}}
    for suite, values in (("overhead", result), ("memory", {**result, "rows": "another suite"})):
        (tmp_path / "benchmarks" / suite).mkdir(parents=True)
        (tmp_path / "benchmarks" / suite / "cell.json").write_text(json.dumps(values))
    new = readme_tables.filled(text, tmp_path)
    assert "| what | ms | bare calls, ms | times bare calls |" in new and "another suite" not in new
    assert "| solve | 10.02 [9.7, 11.5] | 9.512 | 1.054 |" in new
    assert new.startswith("a 1\n<!-- results:benchmark-overhead -->\n")
    assert new.endswith("<!-- /results -->\nb 2\n") and "old" not in new and "python 3.11" in new
    assert readme_tables.filled(new, tmp_path) == new
    assert readme_tables.MISSING in readme_tables.filled(text, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results:nothing -->\n<!-- /results -->", "no renderer for <!-- results:nothing -->"),
        ("<!-- results:digits -->\n", "has no <!-- /results -->"),
    ],
)
def test_a_wrong_marker_is_an_error(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        readme_tables.filled(text, tmp_path)


def test_a_result_of_another_shape_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "digits_training.json").write_text("{}")
    with pytest.raises(ValueError, match="does not hold what"):
        readme_tables.rendered("digits", tmp_path)
    folder = tmp_path / "learned" / "digits"
    folder.mkdir(parents=True)
    (folder / "epd-3-0.json").write_text('{"judged": {}, "cell": {}}')
    with pytest.raises(ValueError, match="learned does not hold what <!-- results:seeds-digits --> needs"):
        readme_tables.rendered("seeds-digits", tmp_path)


def test_check_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("<!-- results:digits -->\nmade up\n<!-- /results -->\n")
    before = path.read_text()
    assert readme_tables.main(["--check", "--files", str(path)]) == 1
    assert path.read_text() == before
    assert readme_tables.main(["--files", str(path)]) == 0
    assert readme_tables.main(["--check", "--files", str(path)]) == 0
