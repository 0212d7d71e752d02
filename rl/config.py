"""The settings of a refinement: every default lives here, once."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RefineConfig(BaseModel):
    """How a table is refined by rewards."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    steps: int = Field(default=200, ge=1)
    """Updates of the policy."""
    minutes: float | None = Field(default=None, gt=0)
    """Time for the run: makes updates fewer or more, so that they fit into it at the speed of the first one; none: as
    many as `steps` says, whatever they take."""
    policy: Literal["ours", "whitened", "published"] = "ours"
    """What is sampled around the table. ours: noise levels, places of points, every weight, scales; whitened: the same,
    in coordinates that each move the ends of trajectories by as much, `std` times their own size for all together;
    published: places and weights of points as Dirichlets, scales (arXiv 2512.22796). Of the command also acceleration:
    `epd refine-acceleration`, which has options of its own."""
    start: Literal["given", "best"] = "given"
    """Where the policy starts. best: at a hand-made multistep solver of as many calls or another table of yours, where
    one earns more than the given table on training samples; what is exported is tested against the given one all the
    same."""
    concentration: float | None = Field(default=None, gt=0)
    """Total concentration of each Dirichlet at the start; larger: nearer to the given table. None: the policy's."""
    std: float | None = Field(default=None, gt=0)
    """Standard deviation of Gaussian weights, and of the logarithm of scales, at the start; none: the policy's."""
    learn_guidance: bool = False
    """Sample a factor of the guidance scale for every point and state that the network sees, too: a guided model
    evaluates both halves anyway, so that it costs nothing (arXiv 2404.07724). Refused where the model has none."""
    groups: int = Field(default=16, ge=1)
    """Prompts of an update."""
    group_size: int = Field(default=16, ge=2)
    """Tables that are tried on each of them."""
    baseline: Literal["rloo", "grpo", "published"] = "rloo"
    """What a reward is compared with. rloo: the others of its prompt; grpo: these, in their standard deviations;
    published: rewards of other prompts, for comparison only."""
    normalise: bool = True
    """Advantages of an update over their root mean square."""
    shared_noise: bool = True
    """All tables of a group start from the same noise, so that only they make their rewards differ. Without it an
    update sees more noises, which pays where tables change as much as noise does (experiments/bench_refine.py)."""
    antithetic: bool = False
    """Tables come in pairs with opposite Gaussian parts."""
    epochs: int = Field(default=4, ge=1)
    """Passes over the samples of an update."""
    minibatches: int = Field(default=1, ge=1)
    """Parts that each pass is made in; each is one step of Adam."""
    lr: float = Field(default=3e-3, gt=0)
    """Learning rate of Adam; it falls to zero along the run."""
    clip: float = Field(default=0.2, gt=0)
    """How far the ratio of a sample's probabilities may move from 1 in an update before it stops counting."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are shortened to this."""
    kl: float = Field(default=0.0, ge=0)
    """Coefficient of the KL divergence from the policy around the given table."""
    kl_target: float | None = Field(default=None, gt=0)
    """The coefficient is doubled where that divergence is far above this and halved where it is far below; none: it
    stays what `kl` says."""
    entropy: float = Field(default=0.0, ge=0)
    """Coefficient of the policy's entropy, which is to stay large."""
    hidden: int = Field(default=32, ge=1)
    """Width of the policy's network."""
    held_out: int = Field(default=512, ge=64)
    """Held-out samples on which the mean table is tested against the given one."""
    evaluate_every: int = Field(default=20, ge=1)
    """Updates between two such tests."""
    risk: float = Field(default=0.05, gt=0, lt=1)
    """Largest probability with which a table may be exported that is no better than the given one."""
    converged: int = Field(default=64, ge=0)
    """Of the held-out samples, those whose converged end points are computed: how near pictures stay to them is
    recorded beside the rewards. 0: none."""
    tolerance: float = Field(default=1e-4, gt=0, lt=1)
    """Of each step that the converged end points are solved with."""
    allowed: float | None = Field(default=None, ge=0)
    """Exploration is kept safe: the expected reward of an update's pictures stays, as far as is known, at most this
    many standard deviations of the given table's rewards below their mean; prompts are then often run by the given
    table. None: all of them explore."""
    accumulate: int = Field(default=1, ge=1)
    """Parts that the samples of an update are solved in; processes share the parts among them."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Training seed: prompts, noise, tables."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating point type of the states."""

    @model_validator(mode="after")
    def _consistent(self) -> RefineConfig:
        if self.antithetic and self.group_size % 2:
            raise ValueError(f"group_size = {self.group_size} must be even with antithetic: tables come in pairs")
        if self.groups % self.accumulate:
            raise ValueError(f"accumulate = {self.accumulate} must divide groups = {self.groups}")
        if self.samples % self.minibatches:
            raise ValueError(f"minibatches = {self.minibatches} must divide the {self.samples} samples of an update")
        if self.kl_target is not None and self.kl == 0:
            raise ValueError(f"kl_target = {self.kl_target} needs a coefficient to begin with: give kl, such as 0.01")
        if self.allowed is not None and self.start == "best":
            raise ValueError(
                f"allowed = {self.allowed} keeps what explores near the given table, start = 'best' may leave it: "
                "leave one of them out"
            )
        return self

    @property
    def samples(self) -> int:
        """Tables and pictures of an update."""
        return self.groups * self.group_size
