"""How source and tests are laid out: what may stand where."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_no_test_imports_another_test() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names]
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                imported = [name for name in names if name.split(".")[-1].startswith("test_")]
                assert not imported, f"{path}:{node.lineno} imports {imported[0]}: move what both need to tests/helpers"
