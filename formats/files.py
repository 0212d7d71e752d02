"""Reading and writing that never leaves half a file behind."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

MAX_TEXT = 64 * 2**20


def write_atomically(path: Path, data: bytes) -> None:
    """Writes beside the target, syncs, then renames: readers see the old file or the new one, never a part.

    Raises:
        OSError: (a full disk, no permission) with the old file intact and nothing left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
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


def read_text(path: Path, error: type[ValueError], limit: int = MAX_TEXT) -> str:
    """The UTF-8 text of a file of at most `limit` bytes; everything that can go wrong is one `error`."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise error(f"{path} has {size} bytes, more than {limit}: not a file of ours")
        return path.read_bytes().decode("utf-8")
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}; give the path of an existing file") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not UTF-8 text: {problem}") from problem
