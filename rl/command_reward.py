"""A command as a reward: pictures and prompts go to a subprocess, scores come back, as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..formats.files import read_text
from ..formats.json_text import parse_json
from .reward import RewardError

TAIL = 1000  # bytes of the standard error that a message shows
SECONDS = 600.0


@dataclass(frozen=True)
class CommandReward:
    """Runs a command for every batch.

    Its standard input is {"images": [PATH, ...], "prompts": [TEXT, ...]}, the pictures being 8-bit PNG files in a
    folder that is removed afterwards. It answers {"scores": [NUMBER, ...]} on its standard output and nothing else
    there; logs belong on its standard error. It runs in the working directory, without a shell.

    Args:
        name: of the reward.
        command: the program and its arguments.
        timeout: in seconds; after it the command and all that it has started are killed.
    """

    name: str
    command: tuple[str, ...]
    timeout: float = SECONDS

    def __post_init__(self) -> None:
        if not self.command:
            raise RewardError(f"the reward {self.name} has no command: give command:PROGRAM ARGUMENTS")
        if not 0 < self.timeout < float("inf"):
            raise RewardError(
                f"the reward {self.name} has timeout = {self.timeout}: give seconds > 0, command[600s]:..."
            )

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of images (B, 3, H, W) in [0, 1], float64.

        Raises:
            RewardError: for a command that cannot be started, takes too long, ends with a status other than 0, or
                answers anything but B scores; with the end of its standard error.
        """
        with tempfile.TemporaryDirectory(prefix="epd-reward-") as name:
            folder = Path(name)
            request = {"images": _write_pictures(images, folder), "prompts": list(prompts)}
            (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
            self._run(folder)
            return torch.tensor(self._scores(folder, len(images)), dtype=torch.float64)

    def _run(self, folder: Path) -> None:
        # Files, not pipes: none can fill up, and a process that outlives the command keeps none of them open for us.
        with (
            (folder / "request.json").open("rb") as request,
            (folder / "stdout").open("wb") as out,
            (folder / "stderr").open("wb") as err,
        ):
            try:
                process = subprocess.Popen(self.command, stdin=request, stdout=out, stderr=err, start_new_session=True)
            except OSError as error:
                raise RewardError(
                    f"the reward {self.name} cannot be started: {error.strerror}; give a program that is there"
                ) from error
            try:
                code = process.wait(self.timeout)
            except BaseException as error:  # Ctrl-C, too: the command is in a session of its own and does not see it
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise self._error(
                        folder, f"took more than {self.timeout:g} s and was killed; allow more: command[SECONDSs]:..."
                    ) from None
                raise
        if code:
            raise self._error(folder, f"ended with status {code}, not 0: mend the command")

    def _scores(self, folder: Path, count: int) -> list[float]:
        try:
            answer = parse_json(read_text(folder / "stdout", RewardError), RewardError, "the answer", finite=False)
        except RewardError as error:
            raise self._error(
                folder, f'answered no JSON ({error}): print {{"scores": [...]}} alone on the standard output'
            ) from error
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list) or not all(type(score) in (int, float) for score in scores):
            shown = json.dumps(answer)[:200]
            raise self._error(folder, f'answered {shown}: print {{"scores": [NUMBER, ...]}}')
        if len(scores) != count:
            raise self._error(folder, f"answered {len(scores)} scores for {count} pictures: give one for each")
        return scores

    def _error(self, folder: Path, problem: str) -> RewardError:
        with (folder / "stderr").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            tail = file.read(TAIL).decode("utf-8", "replace").strip()
        return RewardError(f"the reward {self.name} {problem}" + (f"; its standard error ends: {tail}" if tail else ""))


def _write_pictures(images: Tensor, folder: Path) -> list[str]:
    pixels = (images.detach().cpu().float() * 255).round().byte().permute(0, 2, 3, 1).numpy()
    paths = [str(folder / f"{i:05d}.png") for i in range(len(pixels))]
    for path, picture in zip(paths, pixels, strict=True):
        Image.fromarray(picture).save(path)
    return paths
