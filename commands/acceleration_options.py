"""The options of `epd refine-acceleration`."""

from __future__ import annotations

from pathlib import Path

from ..pipelines.options import FROZEN, UserFolder, UserPath
from ..rl.acceleration_config import AccelerationConfig
from .model_arguments import ModelArguments


class RefineAcceleration(AccelerationConfig, ModelArguments):
    """Learn which network calls of a frozen model can be left out, for each sample on its own, by rewards (RAPID3).

    Leaves policy.safetensors for --accelerate rapid3:policy=OUT, solver.json with the plain solver that it is for,
    report.json, TensorBoard logs (tb/) and a checkpoint in --out. Ctrl-C or a crash leaves a run that --resume
    continues bit for bit.
    """

    model_config = FROZEN

    table: str | None = None
    """Solver whose calls are left out, one that asks once a step; none: Euler in --grid steps."""
    reward: tuple[str, ...] = ()
    """What pictures are rewarded by, one or several, as in epd refine."""
    weights: tuple[float, ...] = ()
    """Of each reward, which are measured in standard deviations of the plain solver's; none: 1."""
    watch: tuple[str, ...] = ()
    """Rewards that are recorded on held-out samples without being learned from, to see whether others are hacked."""
    features: str | None = None
    """What a discriminator sees pictures as, see --discriminator: inception, or file.py:function or
    package.module:function, as in epd evaluate."""
    held_out_prompts: UserPath | None = None
    """File with prompts that are tested on and never trained on; none: every fifth of ten prompts or more."""
    out: UserFolder = Path("runs/acceleration")
    """Folder of the run."""
    resume: bool = False
    """Continue the run in --out."""
    dry_run: bool = False
    """Print the plan and what it costs, and stop."""

    def acceleration_config(self) -> AccelerationConfig:
        """The part that says how to learn."""
        return AccelerationConfig(**{name: getattr(self, name) for name in AccelerationConfig.model_fields})
