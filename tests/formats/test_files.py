"""Files that people name: what is no regular file is refused, a home folder is found, a byte order mark is no text."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.tables import PLAIN

import epd
from epd.commands.options import Distill
from epd.commands.yaml_config import load_config
from epd.denoisers.edm_checkpoint import load_edm
from epd.distill.teacher import cache_folder
from epd.formats.files import read_text, user_path, write_atomically
from epd.formats.published import read_published
from epd.pipelines.options import read_prompts

READERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "table": (epd.Table.load, "solver.json"),
    "published pickle": (read_published, "network.pkl"),
    "published archive": (read_published, "network.npz"),
    "config": (lambda path: load_config(path, Distill), "config.yaml"),
    "prompts": (read_prompts, "prompts.txt"),
    "EDM config": (lambda path: load_edm(path.parent), "edm.json"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_is_refused_and_not_waited_for(reader: str, tmp_path: Path) -> None:
    read, name = READERS[reader]
    os.mkfifo(tmp_path / name)  # who opens it waits for a writer, for ever
    with pytest.raises(ValueError, match="cannot be read: it is a device, a pipe or a socket"):
        read(tmp_path / name)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no /dev/zero")
@pytest.mark.parametrize("reader", READERS)
def test_an_endless_device_is_refused(reader: str, tmp_path: Path) -> None:
    read, name = READERS[reader]
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="cannot be read: it is a device, a pipe or a socket"):
        read(tmp_path / name)


@pytest.mark.parametrize("reader", READERS)
def test_a_folder_in_the_place_of_a_file_is_refused(reader: str, tmp_path: Path) -> None:
    read, name = READERS[reader]
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="cannot be read: Is a directory; give the path of a regular file"):
        read(tmp_path / name)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system has no /proc")
def test_a_file_that_says_it_is_empty_is_bounded_by_what_it_gives() -> None:
    assert Path("/proc/self/maps").stat().st_size == 0
    with pytest.raises(ValueError, match="has more than 10 bytes"):
        read_text(Path("/proc/self/maps"), ValueError, limit=10)


BOM = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(BOM + b"a cat\r\na dog\r\n")
    assert read_prompts(tmp_path / "prompts.txt") == ["a cat", "a dog"]


def test_a_byte_order_mark_is_no_part_of_a_config_or_a_table(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(BOM + b"calls: 7\r\n")
    assert load_config(tmp_path / "c.yaml", Distill).calls == "7"
    PLAIN.save(tmp_path / "solver.json")
    (tmp_path / "solver.json").write_bytes(BOM + (tmp_path / "solver.json").read_bytes())
    assert epd.Table.load(tmp_path / "solver.json") == PLAIN


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, while another folder is the working one."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_a_tilde_is_the_home_folder_wherever_a_file_is_read_or_written(home: Path) -> None:
    PLAIN.save("~/runs/solver.json")
    assert (home / "runs" / "solver.json").is_file()
    assert epd.Table.load("~/runs/solver.json") == PLAIN
    write_atomically(Path("~/prompts.txt"), b"a cat\n")
    assert read_prompts("~/prompts.txt") == ["a cat"]
    write_atomically(Path("~/c.yaml"), b"calls: 7\n")
    assert load_config(Path("~/c.yaml"), Distill).calls == "7"
    assert list(Path().iterdir()) == []


def test_the_cache_of_teachers_may_be_named_from_the_home_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPD_CACHE", "~/cache")
    assert cache_folder() == home / "cache"
    monkeypatch.delenv("EPD_CACHE")
    assert cache_folder() == home / ".cache" / "epd"


def test_a_tilde_of_a_user_without_a_home_folder_is_an_error(home: Path) -> None:
    name = "nobody-has-this-name"
    with pytest.raises(KeyError):
        pwd.getpwnam(name)
    with pytest.raises(ValueError, match="no home folder: write the path in full"):
        PLAIN.save(f"~{name}/solver.json")
    assert list(Path().iterdir()) == [] and user_path("a/~b") == Path("a/~b")
