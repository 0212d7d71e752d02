"""The options of `epd distill-feedback`."""

from __future__ import annotations

from pathlib import Path

from ..distill.feedback_config import FeedbackConfig
from ..pipelines.options import FROZEN, UserFolder
from .model_arguments import ModelArguments


class DistillFeedback(FeedbackConfig, ModelArguments):
    """Learn inner-loop feedback for a frozen DiT, PixArt or SD3: a block that lets a call answer for the step ahead.

    Leaves feedback.safetensors for --accelerate ilf:module=..., solver.json with the steps that it was learned on,
    TensorBoard logs (tb/) and a checkpoint in --out. Ctrl-C or a crash leaves a run that --resume continues bit for
    bit.
    """

    model_config = FROZEN

    out: UserFolder = Path("runs/feedback")
    """Folder of the run."""
    resume: bool = False
    """Continue the run in --out."""
    dry_run: bool = False
    """Print the loop, what it costs and how long training is, and stop."""

    def feedback_config(self) -> FeedbackConfig:
        """The part that says how to learn."""
        return FeedbackConfig(**{name: getattr(self, name) for name in FeedbackConfig.model_fields})
