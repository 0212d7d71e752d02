"""A command as a reward: what it gets, and everything that it can do wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from epd.rl.command_reward import CommandReward
from epd.rl.reward import RewardError, measured
from epd.rl.rewards import load_reward

IMAGES = torch.rand(3, 3, 5, 7, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", 'two "words"', "drei ü"]
READ = "import json, sys\nfrom PIL import Image\nasked = json.load(sys.stdin)\n"


def reward(tmp_path: Path, code: str, seconds: str = "20s") -> CommandReward:
    (tmp_path / "score it.py").write_text(code)
    loaded = load_reward(f"command[{seconds}]:'{sys.executable}' '{tmp_path / 'score it.py'}'")
    assert isinstance(loaded, CommandReward)
    return loaded


def test_a_command_scores_pngs_and_prompts(tmp_path: Path) -> None:
    code = READ + (
        "pictures = [Image.open(path) for path in asked['images']]\n"
        "assert all((p.size, p.mode, p.format) == ((7, 5), 'RGB', 'PNG') for p in pictures)\n"
        "sums = [sum(p.tobytes()) for p in pictures]\n"
        "print('a line for people', file=sys.stderr)\n"
        "print(json.dumps({'scores': [s + 1000000 * len(p) for s, p in zip(sums, asked['prompts'])]}))\n"
        f"open({str(tmp_path / 'first')!r}, 'w').write(asked['images'][0])\n"
    )
    scores = measured(reward(tmp_path, code), IMAGES, PROMPTS)
    expected = (IMAGES * 255).round().sum((1, 2, 3)) + 1e6 * torch.tensor([len(p) for p in PROMPTS])
    assert scores.tolist() == expected.tolist()
    assert not Path((tmp_path / "first").read_text()).parent.exists(), "the folder of pictures is gone"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys\nsys.exit('no weights')", "ended with status 1, not 0: mend the command; .* ends: no weights"),
        ("1 / 0", "ended with status 1.*ZeroDivisionError: division by zero"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "ended with status -9"),
        ("import sys\nsys.stderr.write('x' * 10**7 + 'END')\nsys.exit(3)", "status 3, .* ends: x{997}END$"),
        ("print('loading...')\nprint('{\"scores\": [1, 2, 3]}')", "answered no JSON .*alone on the standard output"),
        ("pass", "answered no JSON"),
        ("import sys\nsys.stdout.buffer.write(b'\\xff\\xfe')", "answered no JSON .*not UTF-8"),
        ("print('[1, 2, 3]')", r"answered \[1, 2, 3\]: print"),
        ("print('{\"scores\": 1}')", "print .*NUMBER"),
        ('print(\'{"scores": [1, "2", true]}\')', "print .*NUMBER"),
        ("print('{\"scores\": [1, 2]}')", "answered 2 scores for 3 pictures: give one for each"),
        ("print('{\"scores\": [1, NaN, 3]}')", r"scores\[1\] = nan, which is not finite"),
        ("print('{\"scores\": [1, 2, 1e999]}')", r"scores\[2\] = inf"),
    ],
)
def test_what_a_command_does_wrong_is_named(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(RewardError, match=rf"(?s)reward command\[20s\]:.*{message}"):
        measured(reward(tmp_path, code), IMAGES, PROMPTS)


def test_much_on_the_standard_error_does_not_block(tmp_path: Path) -> None:
    code = "import sys\nsys.stderr.write('x' * 10**7)\nprint('{\"scores\": [1, 2, 3]}')"
    assert measured(reward(tmp_path, code), IMAGES, PROMPTS).tolist() == [1, 2, 3]


def gone(pid: int) -> bool:
    """Whether a process has ended, or is a zombie that whoever adopted it has yet to bury."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


HANGS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[0] + ".pid", "w").write(str(child.pid))
print("started", file=sys.stderr, flush=True)
time.sleep(600)
"""


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"(?s)took more than 2 s and was killed; allow more.*ends: started"):
        measured(reward(tmp_path, HANGS, "2s"), IMAGES, PROMPTS)
    assert gone(int((tmp_path / "score it.py.pid").read_text()))


def test_a_child_that_outlives_the_command_does_not_hold_us(tmp_path: Path) -> None:
    code = HANGS.replace("time.sleep(600)\n", "print('{\"scores\": [1, 2, 3]}')\n").replace("sleep(600)", "sleep(30)")
    assert measured(reward(tmp_path, code), IMAGES, PROMPTS).tolist() == [1, 2, 3]
    os.kill(int((tmp_path / "score it.py.pid").read_text()), signal.SIGKILL)


def test_ctrl_c_kills_the_command_and_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    wait = subprocess.Popen.wait

    def interrupted(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if not started:
            started.append(process)
            raise KeyboardInterrupt
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured(reward(tmp_path, "import time; time.sleep(600)"), IMAGES, PROMPTS)
    assert started[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("command:", "has no command"),
        ("command:  ", "has no command"),
        ("command:no-such-program --x", "names no program 'no-such-program'"),
        ("command:'python", "is no command line .*close its quotes"),
        ("command[0s]:true", "timeout = 0"),
        ("command[2m]:true", "unknown"),
    ],
)
def test_commands_that_cannot_run_are_refused_at_once(spec: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        load_reward(spec)


def test_ten_minutes_are_allowed_by_default() -> None:
    loaded = load_reward("command:true a 'b c'")
    assert loaded == CommandReward("command:true a 'b c'", ("true", "a", "b c"), 600.0)
    halved = load_reward("command[0.5s]:true")
    assert isinstance(halved, CommandReward) and halved.timeout == 0.5
