"""Rewards by name: the verifier of `shapes`, CLIP-like models, a command, a function of one's own."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..denoisers.checks import in_words
from ..denoisers.own_function import is_own_function, own_function
from ..denoisers.shapes_verifier import Verdict, verify
from ..formats.texts import perhaps
from .command_reward import SECONDS, CommandReward
from .reward import Reward, RewardError

SHAPES: dict[str, Callable[[Verdict], Tensor]] = {
    "shapes-all": lambda verdict: verdict.all,
    "shapes-frac": lambda verdict: verdict.frac,
    "shapes-graded": lambda verdict: verdict.graded,
}
FORMS = (
    *SHAPES,
    "clip-score:ID_OR_PATH",
    "pick-score:ID_OR_PATH",
    "aesthetic:CLIP_ID_OR_PATH,HEAD.safetensors",
    "hps:PATH",
    "image-reward:PATH",
    "command:COMMAND LINE",
    "command[SECONDSs]:COMMAND LINE",
    "package.module:function",
    "path/file.py:function",
)
MODELS = ("clip-score", "pick-score", "aesthetic", "hps", "image-reward")
COMMAND = re.compile(r"command(\[(?P<seconds>\d+(\.\d+)?)s\])?:(?P<line>.*)", re.DOTALL)


@dataclass(frozen=True)
class FunctionReward:
    """A function `f(images, prompts) -> (B,)` as a reward."""

    name: str
    function: Callable[[Tensor, Sequence[str]], Tensor]

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """What the function returns; `measured` checks it."""
        return self.function(images, prompts)


def load_reward(spec: str, device: str = "cpu", beside: Sequence[str] = ()) -> Reward:
    """The reward that a specification stands for; its name is the specification.

    - `shapes-all`, `shapes-frac`, `shapes-graded`: the verifier of the embedded world.
    - `clip-score:ID_OR_PATH`, `pick-score:ID_OR_PATH`: a CLIP model of the hub or of a folder, as safetensors. After a
      comma, `pick-score` takes the id or folder of tokenizer and processor.
    - `aesthetic:CLIP_ID_OR_PATH,HEAD.safetensors`: LAION's predictor.
    - `hps:PATH`, `image-reward:PATH`: a checkpoint as safetensors; after a comma, the id or folder of the tokenizer.
    - `command:COMMAND LINE`, `command[120s]:...`: a program, killed after 600 s or as many as are given.
    - `package.module:function`, `path/file.py:function`: `f(images (B, 3, H, W) in [0, 1], prompts) -> (B,)`.

    Args:
        spec: as above.
        device: where models run; a command runs where it likes, a function where the pictures are.
        beside: names that the caller knows itself, for the error of an unknown one.

    Raises:
        RewardError: for an unknown specification, or one whose files, program or function are not there or do not fit.
    """
    if spec in SHAPES:
        score = SHAPES[spec]
        return FunctionReward(spec, lambda images, prompts: score(verify(images, prompts)))
    command = COMMAND.fullmatch(spec)
    if command is not None:
        return _command(spec, command["line"], float(command["seconds"] or SECONDS))
    kind, _, source = spec.partition(":")
    if kind in MODELS and source:
        return _model(spec, kind, source, device)
    if is_own_function(spec):
        return _own(spec)
    forms = (*beside, *FORMS)
    hint = perhaps(kind, [form.partition(":")[0] for form in forms])
    raise RewardError(f"the reward {spec!r} is unknown: {hint}there are {', '.join(forms)}")


def _model(spec: str, kind: str, source: str, device: str) -> Reward:
    """Imported here: transformers takes seconds that other rewards do not need."""
    try:
        from . import clip_rewards, image_reward

        loaders: dict[str, Callable[[str, str, str], Reward]] = {
            "clip-score": clip_rewards.clip_score,
            "pick-score": clip_rewards.pick_score,
            "aesthetic": clip_rewards.aesthetic,
            "hps": clip_rewards.hps,
            "image-reward": image_reward.image_reward,
        }
        return loaders[kind](spec, source, device)
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(
            f"the reward {spec} cannot be loaded ({in_words(error)}): give the id of a model with safetensors that "
            "this machine can reach or has in its cache, or a folder with model, tokenizer and preprocessor_config.json"
        ) from error


def _command(spec: str, line: str, seconds: float) -> CommandReward:
    try:
        words = tuple(shlex.split(line))
    except ValueError as error:
        raise RewardError(f"the reward {spec} is no command line ({error}): close its quotes") from error
    reward = CommandReward(spec, words, seconds)
    if shutil.which(words[0]) is None:
        raise RewardError(f"the reward {spec} names no program {words[0]!r}: give one of the PATH, or its path")
    return reward


def _own(spec: str) -> FunctionReward:
    try:
        function = own_function(spec, "--reward", RewardError)
    except ImportError as error:
        raise RewardError(
            f"the reward {spec} cannot be imported ({in_words(error)}): install what it needs, run in the folder of "
            f"the module, or give one of {', '.join(FORMS)}"
        ) from error
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        raise RewardError(
            f"the function {spec} cannot be called with images and prompts ({error}): define f(images, prompts)"
        ) from error
    except ValueError:  # some of C's functions have no signature; the first call shows
        pass
    return FunctionReward(spec, function)
