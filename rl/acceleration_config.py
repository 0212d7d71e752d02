"""The settings of learning to accelerate: every default lives here, once."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..solvers.registry import SCHEDULES, USUAL, Schedule


class AccelerationConfig(BaseModel):
    """How a policy learns which network calls can be left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    steps: int = Field(default=200, ge=1)
    """Updates of the policy."""
    grid: int = Field(default=24, ge=2, le=1000)
    """Steps of the plain solver whose calls are left out; of a given table, its own."""
    schedule: Schedule | None = None
    """Noise levels of these steps; none: polynomial, or flow on a flow path."""
    rho: float = Field(default=7.0, gt=0)
    """Exponent of the polynomial schedule."""
    shift: float = Field(default=1.0, gt=0)
    """Shift of the flow schedule."""
    sigma_min: float | None = Field(default=None, gt=0)
    """Smallest noise level, where the solver ends; none: the model's."""
    sigma_max: float | None = Field(default=None, gt=0)
    """Largest noise level, where the solver begins; none: the model's."""
    heads: tuple[Literal["step", "cache", "sparse"], ...] = ("step", "cache")
    """What is decided for each sample: step, how many steps of the grid to jump over; cache, whether the last slope is
    taken again; sparse, which share of attention is computed (DiT, PixArt, SD3). The step head alone, with --baseline
    rloo, is TPDM (arXiv 2412.01243)."""
    levels: tuple[float, ...] = (0.98, 0.95, 0.9)
    """Sparse levels: shares of attention's mass that are kept."""
    block: int = Field(default=128, ge=1)
    """Tokens in a block of sparse attention; a multiple of 128 where a GPU is to gain by it."""
    jump: int = Field(default=1, ge=1)
    """Steps of a jump at the start; 1: the plain solver."""
    sharpness: float = Field(default=2.0, gt=0)
    """Of jumps at the start: these are jump - 1/2 + 1/sharpness steps on average; larger explores less."""
    explored: float = Field(default=0.1, gt=0, lt=1)
    """Probability at the start with which a slope is taken again."""
    channels: int = Field(default=16, ge=1, le=1024)
    """Channels of a head's first convolution; the later ones have two and four times as many."""
    map_size: int = Field(default=32, ge=1, le=1024)
    """Longest side of what heads see of a state; larger ones are averaged."""
    decay: float = Field(default=0.97, gt=0, le=1)
    """Lambda: what earns is quality x (1 - lambda^K) / (K (1 - lambda)) with K network calls. Smaller: fewer calls."""
    reward_shift: float | None = Field(default=2.5)
    """Added to the rewards, which are in standard deviations from the plain solver's mean, before they are clipped at 0
    from below: of a negative reward more calls would earn more. None: raw rewards, neither shifted nor clipped, as
    published."""
    discriminator: float = Field(default=0.0, ge=0)
    """Weight, beside the reward, of the probability by which a discriminator takes a picture for one of the plain
    solver; it learns along, from features of pictures. 0: none."""
    discriminator_lr: float = Field(default=1e-3, gt=0)
    """Its learning rate."""
    groups: int = Field(default=16, ge=1)
    """Prompts of an update."""
    group_size: int = Field(default=8, ge=2)
    """Trajectories that are tried on each of them."""
    shared_noise: bool = True
    """All trajectories of a group start from the same noise, so that only decisions make what they earn differ."""
    baseline: Literal["grpo", "rloo"] = "grpo"
    """What a trajectory is compared with. grpo: the others of its prompt, in their standard deviations; rloo: these, as
    they are. Groups in which all earn the same are left out."""
    epochs: int = Field(default=4, ge=1)
    """Steps of Adam on the trajectories of an update."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of Adam; it falls to zero along the run."""
    clip: float = Field(default=0.2, gt=0)
    """How far the ratio of a trajectory's probabilities may move from 1 in an update before it stops counting."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are shortened to this."""
    entropy: float = Field(default=1e-3, ge=0)
    """Coefficient of the decisions' entropy at the start; it falls to zero along the run."""
    held_out: int = Field(default=256, ge=64)
    """Held-out samples on which the policy's likeliest choices are tested against the plain solver."""
    evaluate_every: int = Field(default=20, ge=1)
    """Updates between two such tests."""
    risk: float = Field(default=0.05, gt=0, lt=1)
    """Largest probability with which a policy may be exported that earns no more than the plain solver."""
    tolerance: float = Field(default=1e-4, gt=0, lt=1)
    """Of each step that the converged end points of the reward closeness are solved with."""
    accumulate: int = Field(default=1, ge=1)
    """Parts that the samples of an update are solved in; processes share the parts among them."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Training seed: prompts, noise, decisions, the heads' first weights."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating point type of the states."""

    @model_validator(mode="after")
    def _consistent(self) -> AccelerationConfig:
        if self.groups % self.accumulate:
            raise ValueError(f"accumulate = {self.accumulate} must divide groups = {self.groups}")
        if not self.heads or len(set(self.heads)) < len(self.heads):
            raise ValueError(f"heads = {list(self.heads)}: give some of step, cache and sparse, each once")
        return self

    @property
    def samples(self) -> int:
        """Trajectories of an update."""
        return self.groups * self.group_size

    def of_schedule(self, path: Literal["ve", "flow"]) -> tuple[str, float | None]:
        """The schedule's name and its number."""
        name = self.schedule or USUAL[path]
        row = SCHEDULES[name]
        return name, {"rho": self.rho, "shift": self.shift}.get(row.shape or "", row.number)
