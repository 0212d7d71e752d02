"""The package as a whole: what it ships, which way its imports point, what its source must not hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# From the lowest to the highest: each may import those before it, and nobody imports experiments.
ROOMS = (
    "formats", "denoisers", "solvers", "pipelines", "accelerators", "runs", "distill", "rl", "evaluation", "commands",
    "experiments",
)  # fmt: skip
# What each room may import; `epd/` itself, on top, may import all of them.
BELOW = {room: set(ROOMS[: place + 1]) for place, room in enumerate(ROOMS)} | {"formats": {"formats"}}
DATA = {".json", ".safetensors", ".yaml", ".md", ".typed"}


def declared_project() -> dict[str, Any]:
    """The [project] table of pyproject.toml."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11 and newer
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def sources(*rooms: str) -> list[Path]:
    return sorted(p for room in rooms for p in (ROOT / room).rglob("*.py"))


def shipped() -> set[str]:
    """What a wheel has to hold, as paths below `epd/`: all code and data that version control knows of."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.splitlines() if listed.returncode == 0 else []
    names = names or [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]
    kept = set()
    for name in names:
        path = ROOT / name
        if path.is_symlink() or not path.exists() or path.suffix not in DATA | {".py"}:
            continue
        if name.split("/")[0] == "epd":
            kept.add(name)
        elif name.split("/")[0] in ROOMS:
            kept.add(f"epd/{name}")
    return kept


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and sdist, the wheel built from the sdist, offline."""
    folder = tmp_path_factory.mktemp("dist")
    copy = tmp_path_factory.mktemp("source") / "epd"
    copy.mkdir()
    names = ["pyproject.toml", "README.md", "LICENSE", "epd", *ROOMS]
    # Links stay links: what setuptools makes of them is what is tested.
    subprocess.run(["cp", "-a", *names, str(copy)], cwd=ROOT, check=True)
    script = "import sys; from setuptools import build_meta as b; print(b.build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, str(folder)], cwd=copy, check=True, capture_output=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as file:
        file.extractall(copy.parent, filter="data")
    unpacked = next(path for path in copy.parent.iterdir() if path.name.startswith("epd-"))
    script = "import sys; from setuptools import build_meta as b; print(b.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, str(folder)], cwd=unpacked, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_wheel_and_sdist_hold_real_files(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        inside = {name for name in wheel.namelist() if name.startswith("epd/")}
        assert inside == shipped()
        for name in inside:
            room = name.split("/")[1]
            original = ROOT / (name if room not in ROOMS else name.removeprefix("epd/"))
            assert wheel.read(name) == original.read_bytes(), name
        top = {name.split("/")[0] for name in wheel.namelist()}
        assert top == {"epd", next(name for name in top if name.endswith(".dist-info"))}
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        members = {member.name.split("/", 1)[-1]: member for member in sdist.getmembers()}
        assert {*shipped(), "LICENSE", "README.md"} <= set(members)
        assert not any(member.issym() or member.islnk() for member in members.values())


@pytest.mark.slow
def test_the_installed_wheel_works_without_the_repository(built: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, 'site'); import epd; assert 'site' in epd.__file__, epd.__file__\n"
        "from epd.denoisers.digits import digits, digits_classifier, digits_exact\n"
        "digits(), digits_classifier(), digits_exact(), epd.named_table('sd15-rdpo-10x2')\n"
        "from epd.commands.options import Distill\n"
        "from epd.commands.yaml_config import read_yaml; from pathlib import Path\n"
        "print(len([read_yaml(p) for p in Path('site/epd/experiments/configs').glob('*.yaml')]))\n"
        "from epd import cli; sys.exit(cli.main(['table', 'show', 'flux-rdpo-8x2']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[0]) == len(list((ROOT / "experiments" / "configs").glob("*.yaml")))


def test_the_links_are_there() -> None:
    for room in ROOMS:
        assert (ROOT / "epd" / room).is_symlink() and (ROOT / "epd" / room).readlink() == Path("..") / room


def imported_rooms(path: Path, room: str) -> set[tuple[str, int]]:
    """(room, line) of every import of another part of the package."""
    depth = len(path.relative_to(ROOT / room).parts)  # 1 for a module directly in the room
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level > depth:
            assert node.level == depth + 1, f"{path}:{node.lineno} leaves the package"
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {(name.split(".")[0], node.lineno) for name in names}
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                if isinstance(node, ast.Import) or node.level == 0:
                    assert name.split(".")[0] != "epd" or "comfyui" in path.parts, f"{path}:{node.lineno} is absolute"
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    for path in sources(room):
        for other, line in imported_rooms(path, room):
            assert other in BELOW[room], f"{path}:{line} imports {other}; {room} may import {sorted(BELOW[room])}"


def calls(tree: ast.AST, name: str) -> list[int]:
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    return [n.lineno for n in nodes if isinstance(n.func, ast.Name) and n.func.id == name]


def foreign(tree: ast.AST) -> set[int]:
    """Signatures that are not ours to choose: protocols that describe others' calls, and diffusers' from_config."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    out = {id(n) for c in classes for n in c.body if isinstance(n, ast.FunctionDef) and n.name == "from_config"}
    protocols = [c for c in classes if any(ast.unparse(base) == "Protocol" for base in c.bases)]
    return out | {id(node) for c in protocols for node in c.body}


def test_no_signature_swallows_arguments_and_nothing_is_guessed() -> None:
    for path in sources("epd", *ROOMS):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and id(node) not in foreign(tree):
                # `*args, **kwargs` alone is a stand-in for somebody else's function, and so it is beside the `original`
                # that it covers: it takes what that one takes.
                covers = any(argument.arg == "original" for argument in node.args.args)
                passed_on = node.args.vararg is not None and (covers or len(node.args.args) <= 1)
                assert node.args.kwarg is None or passed_on, f"{path}:{node.lineno} takes any keyword"
        assert not calls(tree, "hasattr"), f"{path}:{calls(tree, 'hasattr')} calls hasattr"


def test_nothing_is_unpickled_but_by_the_restricted_reader() -> None:
    allowed = {ROOT / "formats" / "published_pickle.py", ROOT / "formats" / "pickle_machine.py"}
    for path in sources("epd", *ROOMS):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            bad = {name.split(".")[0] for name in names} & PICKLERS
            assert not bad or path.resolve() in allowed, f"{path}: {bad}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.save", "eval", "exec"):
                raise AssertionError(f"{path}:{node.lineno} calls {ast.unparse(node.func)}")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, f"{path}: allow_pickle"


PICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN = re.compile(
    r"/work/|\.\./shared|\bclaude\b|\banthropic\b|\bgpt\b|\bLLM\b|\bagents?\b|\b(TODO|FIXME|XXX)\b",
    re.IGNORECASE,
)


def test_nothing_refers_to_where_it_was_made() -> None:
    names = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "Makefile", "pyproject.toml", "mkdocs.yml"]
    names += [f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")]
    rooms = [room for room in ROOMS if room != "runs"]  # where people's own runs may lie
    data = [p for room in rooms for p in (ROOT / room).rglob("*") if p.suffix in (".json", ".yaml", ".md")]
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path.name != Path(__file__).name]
    for path in [*(ROOT / name for name in names), *sources("epd", *ROOMS), *data, *tests]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not FORBIDDEN.search(line), f"{path}:{number}: {line.strip()[:100]}"


def test_constraints_pin_what_is_declared() -> None:
    project = declared_project()
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    lines = [line for line in lines if line]
    assert all(re.fullmatch(r'[\w.-]+==[\w.]+(; python_version (>=|<) "3\.11")?', line) for line in lines)
    pinned = {re.split("==", line)[0].lower().replace("_", "-") for line in lines}
    for requirement in wanted:
        name = re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")
        assert name == "epd" or name in pinned, f"{requirement} is not pinned"
    assert "torch==2.13.0" in lines
    assert not [name for name in pinned if name.startswith(("torchvision", "torchaudio", "nvidia", "triton"))]


def test_every_import_is_declared() -> None:
    project = declared_project()
    extras = [d for extra in project["optional-dependencies"].values() for d in extra]
    declared = {re.split(r"[\[<>=!~; ]", d)[0].lower() for d in [*project["dependencies"], *extras]}
    spelt = {"yaml": "pyyaml", "sklearn": "scikit-learn", "PIL": "pillow", "pydantic_core": "pydantic"}
    for path in sources("epd", *ROOMS):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"epd", "comfy"}:
                assert spelt.get(top, top).lower() in declared, f"{path}:{node.lineno} imports {top}"
