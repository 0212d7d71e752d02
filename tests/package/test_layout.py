"""How source and tests are laid out: what may stand where."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from epd.solvers.registry import NUMBERED, RULES

ROOT = Path(__file__).parents[2]
ROOMS = (
    "formats", "denoisers", "solvers", "pipelines", "accelerators", "runs", "distill", "rl", "evaluation", "commands",
)  # fmt: skip
# Where a rule is written, and where it gets its name. Formats keep the names that others' files use.
NAMED_IN = {"solvers/rules.py", "solvers/registry.py"}


def names_in(node: ast.AST) -> str | None:
    """The rule that a piece of code speaks of, in text or as an attribute of the module of rules."""
    if isinstance(node, ast.Constant) and node.value in {*RULES, *NUMBERED}:
        return str(node.value)
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "rules" and node.attr in RULES:
        return node.attr
    return None


@pytest.mark.parametrize("room", sorted({*ROOMS, "epd"} - {"formats"}))
def test_rules_have_their_names_in_one_registry(room: str) -> None:
    for path in sorted(p for p in (ROOT / room).glob("*.py") if f"{room}/{p.name}" not in NAMED_IN):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = names_in(node)
            assert name is None, f"{path} speaks of {name!r}: take it from solvers/registry.py"


def test_no_test_imports_another_test() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names]
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                imported = [name for name in names if name.split(".")[-1].startswith("test_")]
                assert not imported, f"{path}:{node.lineno} imports {imported[0]}: move what both need to tests/helpers"


def test_no_room_holds_more_than_a_quarter_of_the_source() -> None:
    files = {room: (ROOT / room).rglob("*.py") for room in (*ROOMS, "experiments")}
    files["epd"] = (ROOT / "epd").glob("*.py")  # not what its links lead to
    lines = {room: sum(len(p.read_text(encoding="utf-8").splitlines()) for p in paths) for room, paths in files.items()}
    largest = max(lines, key=lambda room: lines[room])
    assert 4 * lines[largest] < sum(lines.values()), f"{largest} has {lines[largest]} of {sum(lines.values())} lines"


def test_no_file_of_source_or_tests_has_more_than_300_lines() -> None:
    files = [path for place in (*ROOMS, "experiments", "tests") for path in (ROOT / place).rglob("*.py")]
    files += (ROOT / "epd").glob("*.py")
    assert len(files) > 100
    for path in sorted(files):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 300, f"{path} has {lines} lines: split it where two of its subjects meet"
