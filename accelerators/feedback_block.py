"""The learned part of inner-loop feedback: one block, a scale for each block of the loop, and the file they are in."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..formats.files import require_regular, user_path, write_atomically
from .block_lists import HIDDEN, Values, plain

MAX_BYTES = 2**34
KEY = "inner-loop feedback"  # of the file's metadata
TIMESTEP = "timestep"
REMEDY = "learn it again with `epd distill-feedback`, or give the file that it wrote"


@dataclass(frozen=True)
class Loop:
    """Which blocks are run twice, in which network, and in which solver steps.

    Args:
        network: name of its class.
        depth: D, its number of blocks.
        begin: b, the first block of the loop.
        count: L >= 1, its length.
        num_steps: N, solver steps of the trajectory that it was learned for.
        steps: those of them that have feedback, from 0.

    Raises:
        ValueError: for numbers that do not fit together.
    """

    network: str
    depth: int
    begin: int
    count: int
    num_steps: int
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if not (self.begin >= 0 and self.count >= 1 and self.begin + self.count <= self.depth):
            raise ValueError(
                f"a loop of count = {self.count} blocks from begin = {self.begin} is not in a network of {self.depth}: "
                f"give begin >= 0 and count >= 1 with begin + count <= {self.depth}"
            )
        if not self.steps or any(not 0 <= n < self.num_steps for n in self.steps):
            raise ValueError(
                f"feedback in steps {list(self.steps)} of {self.num_steps}: give one at least, from 0 to "
                f"{self.num_steps - 1}"
            )

    @property
    def blocks(self) -> int:
        """Evaluated in a call with feedback: D + L + 1."""
        return self.depth + self.count + 1

    @property
    def share(self) -> float:
        """Of the blocks of a plain call, more than 1."""
        return self.blocks / self.depth

    def dear(self) -> str:
        """What to say of a loop that costs as much as two plain steps, or more; empty where it does not."""
        if self.blocks < 2 * self.depth:
            return ""
        remedy = f"give count <= {self.depth - 2}" if self.depth > 2 else "no loop of so few blocks pays"
        return (
            f"a call with a loop of {self.count} blocks evaluates {self.blocks} of them, two plain steps "
            f"{2 * self.depth}, which look ahead as far: {remedy}"
        )


@dataclass
class Trained:
    """What a file says beside its tensors.

    Args:
        loop: see there.
        sigmas: (N+1,) that it was learned on.
        model: whose network.
        metrics: measured on held-out noise.
    """

    loop: Loop
    sigmas: tuple[float, ...] = ()
    model: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


class Feedback(nn.Module):
    """M and s: the loop's output goes through the block M, and s_l times that is added before block l of its rerun.

    M is told the time up to which the answer is to look ahead: a piecewise linear function of the network's own.

    Args:
        block: of the network's kind, its own copy.
        count: L.
        timesteps: (N,) network times of the trajectory that it is learned for, in any order, distinct.
        ahead: (N,) what M is told there.
    """

    timesteps: Tensor
    ahead: Tensor

    def __init__(self, block: nn.Module, count: int, timesteps: Tensor, ahead: Tensor) -> None:
        super().__init__()
        self.block = block
        self.scale = nn.Parameter(torch.zeros(count))
        times, order = timesteps.float().sort()
        if times.ndim != 1 or ahead.shape != times.shape or not len(times) or bool((times.diff() <= 0).any()):
            told = f"timesteps = {timesteps.tolist()} and ahead = {ahead.tolist()}"
            raise ValueError(f"{told} must be as many, one at least, the first all distinct")
        self.register_buffer("timesteps", times)
        self.register_buffer("ahead", ahead.float()[order])

    def ahead_of(self, timestep: Tensor) -> Tensor:
        """float32, of the same shape: what M is told where the network is told this; beyond the ends the last value."""
        told, times, ahead = timestep.float(), self.timesteps.to(timestep.device), self.ahead.to(timestep.device)
        if len(times) == 1:
            return ahead[0].expand_as(told)
        right = torch.searchsorted(times, told.contiguous()).clamp(1, len(times) - 1)
        share = ((told - times[right - 1]) / (times[right] - times[right - 1])).clamp(0, 1)
        return torch.lerp(ahead[right - 1], ahead[right], share)

    def forward(self, call: Values) -> Any:  # noqa: ANN401 - what a block returns
        """M(call), in its own floating point type; `call` are the arguments of a block by name."""
        hidden, own = call[HIDDEN], next(self.block.parameters())
        if own.device != hidden.device:
            self.to(hidden.device)
        return self.block(**{name: _in_dtype(name, value, own.dtype) for name, value in call.items()})


def _in_dtype(name: str, value: Any, dtype: torch.dtype) -> Any:  # noqa: ANN401
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value if name == TIMESTEP and value.ndim < 2 else value.to(dtype)  # a raw time keeps its digits


def own_copy(block: nn.Module) -> nn.Module:
    """A block's copy that shares nothing with it: no hook, no cover, and gradients.

    Raises:
        ValueError: where its weights are not in memory.
    """
    if any(value.device.type == "meta" for value in block.parameters()):
        raise ValueError("the network's weights are not in memory: accelerate before sequential or group offloading")
    copied = copy.deepcopy(plain(block))
    for module in copied.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            hooks.clear()
        for name in ("forward", "_old_forward", "_hf_hook", "_diffusers_hook"):
            vars(module).pop(name, None)
    return copied.requires_grad_(True)


def save_feedback(path: Path | str, feedback: Feedback, trained: Trained) -> None:
    """Writes safetensors, atomically: the block's weights, `scale`, `timesteps`, `ahead`, and `trained` as JSON."""
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in feedback.state_dict().items()}
    write_atomically(Path(path), save(tensors, {KEY: json.dumps(asdict(trained))}))


def read_trained(path: Path | str) -> Trained:
    """What a file of `save_feedback` says beside its tensors, without reading these.

    Raises:
        ValueError: naming the file, the fault and the remedy.
    """
    path = user_path(path)
    require_regular(path, ValueError, MAX_BYTES)
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})[KEY])
        loop = dict(told["loop"])
        loop["steps"] = tuple(loop["steps"])
        for name, kind in (("network", str), ("depth", int), ("begin", int), ("count", int), ("num_steps", int)):
            if type(loop.get(name)) is not kind:
                raise ValueError(f"{name} = {loop.get(name)!r} is no {kind.__name__}")
        if not all(type(n) is int for n in loop["steps"]):
            raise ValueError(f"steps = {list(loop['steps'])} are no numbers of steps")
        metrics = {str(name): float(value) for name, value in dict(told["metrics"]).items()}
        return Trained(Loop(**loop), tuple(map(float, told["sigmas"])), str(told["model"]), metrics)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bad(path, str(error) if type(error) is not KeyError else f"no {error} in it") from error


def load_feedback(path: Path | str, block: nn.Module) -> Feedback:
    """The learned part in a file, for a network of whose loop this is the first block; in the block's types.

    Raises:
        ValueError: for a file that is damaged, or is not of such a block, naming the fault and the remedy.
    """
    trained, path = read_trained(path), user_path(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise _bad(path, str(error)) from error
    copied = own_copy(block)
    _require_fitting(path, tensors, copied, trained.loop)
    try:
        feedback = Feedback(copied, trained.loop.count, tensors["timesteps"], tensors["ahead"])
    except ValueError as error:
        raise _bad(path, str(error)) from error
    feedback.load_state_dict(tensors)
    return feedback.requires_grad_(False).eval()


def _require_fitting(path: Path, tensors: Mapping[str, Tensor], block: nn.Module, loop: Loop) -> None:
    wanted = {f"block.{name}": tuple(value.shape) for name, value in block.state_dict().items()}
    wanted |= {"scale": (loop.count,)}
    wanted |= dict.fromkeys(("timesteps", "ahead"), tuple(tensors["timesteps"].shape) if "timesteps" in tensors else ())
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in {**wanted, **found}:
        if found.get(name) != wanted.get(name):
            has, needs = (f"{shape}" if shape is not None else "none" for shape in (found.get(name), wanted.get(name)))
            raise _bad(path, f"{name} has shape {has}, and a block of this network needs {needs}")
    for name, value in tensors.items():
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise _bad(path, f"{name} holds what is no finite number")


def _bad(path: Path, problem: str) -> ValueError:
    return ValueError(f"{path} holds no feedback that works here ({problem[:200]}): {REMEDY}")


def default_loop(depth: int) -> tuple[int, int]:
    """(begin, count) in a network of so many blocks: 8 and 12 of 28, in the same proportions elsewhere."""
    return math.floor(depth * 8 / 28), max(1, math.floor(depth * 12 / 28))
