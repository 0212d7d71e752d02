"""Logging of the command: one handler, quieter on all but the first process."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from ..formats.texts import printable
from ..runs.progress import rank, silent

LEVELS = {-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}


class _Format(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = printable(super().format(record), kept="\n\t")  # files have a say in it
        return text if record.levelno == logging.INFO else f"epd: {record.levelname.lower()}: {text}"


class _Here(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what is stderr now, not to what it was when logging was set up, and above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        if silent():
            super().emit(record)
            return
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)


def set_up_logging(verbosity: int) -> None:
    """Our messages on stderr: warnings only (-1), what is being done (0), details and others' warnings (1 and up).

    Processes other than the first speak up only for errors, so that nothing is said twice.
    """
    level = LEVELS[max(-1, min(1, verbosity))] if rank() == 0 else logging.ERROR
    log = logging.getLogger("epd")
    log.handlers = [_Here(sys.stderr)]
    log.handlers[0].setFormatter(_Format("%(message)s"))
    log.setLevel(level)
    log.propagate = False
    if verbosity < 1:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        if not sys.warnoptions:
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
