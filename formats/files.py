"""Files that others name: read whole and within bounds, written so that never half a file is left behind."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

MAX_TEXT = 64 * 2**20
PIECE = 2**20


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path with a leading `~` replaced by the home folder that it stands for.

    Raises:
        ValueError: for a user without a home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as problem:
        raise ValueError(f"{path} starts with ~, but that user has no home folder: write the path in full") from problem


def folder_path(path: str | os.PathLike[str]) -> Path:
    """The path of a folder that is there or can be made, as of `user_path`; makes nothing.

    Raises:
        ValueError: where it would lie in what is no folder, or in one that may not be written.
    """
    path = user_path(path)
    above = next(place for place in (path, *path.absolute().parents) if os.path.exists(place))
    if not above.is_dir():
        raise ValueError(f"{above} is a file, no folder: choose another")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{above} may not be written: choose another folder")
    return path


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a whole file; see `write_streamed`."""
    write_streamed(path, lambda file: file.write(data))


def write_streamed(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes beside the target, syncs, then renames: readers see the old file or the new one, never a part.

    Args:
        write: what it holds, into the open file.

    Raises:
        OSError: (a full disk, no permission) with the old file intact and nothing left beside it.
    """
    path = user_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, f"could not write {path} ({error.strerror})") from error
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes private files; ours are as readable as any other
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(
                error.errno, f"could not write {path} ({error.strerror}); what was there before is unchanged"
            ) from error
        raise


def require_regular(path: Path, error: type[ValueError], limit: int = MAX_TEXT) -> Path:
    """The path with `~` replaced, proven to be a regular file of at most `limit` bytes.

    A pipe would block whoever opens it, and a device never ends.

    Raises:
        error: naming the path, what it is instead, and the remedy.
    """
    path = user_path(path)
    try:
        status = path.stat()
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}; give the path of an existing file") from problem
    if not stat.S_ISREG(status.st_mode):
        kind = "Is a directory" if stat.S_ISDIR(status.st_mode) else "it is a device, a pipe or a socket"
        raise error(f"{path} cannot be read: {kind}; give the path of a regular file")
    if status.st_size > limit:
        raise error(f"{path} has {status.st_size} bytes, more than {limit}: not a file of ours")
    return path


def read_bytes(path: Path, error: type[ValueError], limit: int = MAX_TEXT) -> bytes:
    """All of a regular file of at most `limit` bytes; everything that can go wrong is one `error`."""
    path = require_regular(path, error, limit)
    data = bytearray()
    try:
        with path.open("rb") as file:
            # Piece by piece: a file may grow, and some that the system makes up say that they are empty.
            while len(data) <= limit and (piece := file.read(PIECE)):
                data += piece
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}; give the path of an existing file") from problem
    if len(data) > limit:
        raise error(f"{path} has more than {limit} bytes: not a file of ours")
    return bytes(data)


def read_text(path: Path, error: type[ValueError], limit: int = MAX_TEXT) -> str:
    """The UTF-8 text of such a file, without the byte order mark that some editors put first."""
    try:
        return read_bytes(path, error, limit).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not UTF-8 text: {problem}; save it as UTF-8") from problem
