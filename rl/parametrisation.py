"""What a policy samples of a table, and from what: rows of one dataclass."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..distill.config import GUIDANCE

SCALES = ("slope_scale", "sigma_scale", "anchor_scale")


@dataclass(frozen=True)
class Parametrisation:
    """Which numbers of a table a policy samples, and from what; the others stay those of its base.

    Args:
        dirichlet: of `sigmas` (shares of the whole log range, one Dirichlet), `nodes` (segments of a step, in order:
            K + 1 for K points) and `weights` (the K weights of a step, where they sum to one by themselves).
        gaussian: of `update` (anchor, fan and memory weights) and `lookahead`: every weight that has a slope to weigh,
            normal around the base; where sums are one, isotropic among the changes that sum to zero. Of `sigmas`:
            the logarithms of the shares, likewise.
        log_normal: of `slope_scale`, `sigma_scale`, `anchor_scale`, `guidance_scale`, `anchor_guidance`: factors on
            those of the base; the last two need a guided model.
        concentration: total concentration of each Dirichlet at the start, > 0; a share m varies by
            sqrt(m (1 - m) / (1 + concentration)).
        std: standard deviation of Gaussian weights at the start, > 0.
        scale_std: the same of the logarithm of scales.

    Raises:
        ValueError: for another name, weights that are sampled twice, or a number that is not positive and finite.

    Reference: arXiv 2512.22796 (`published`).
    """

    dirichlet: tuple[str, ...]
    gaussian: tuple[str, ...] = ()
    log_normal: tuple[str, ...] = ()
    concentration: float = 200.0
    std: float = 0.02
    scale_std: float = 0.02

    def __post_init__(self) -> None:
        known = {"dirichlet": ("sigmas", "nodes", "weights"), "gaussian": ("sigmas", "update", "lookahead")}
        known["log_normal"] = SCALES + GUIDANCE
        for field, names in known.items():
            for name in getattr(self, field):
                if name not in names:
                    raise ValueError(f"{field} has {name!r}: give some of {', '.join(names)}")
        if "sigmas" in self.dirichlet and "sigmas" in self.gaussian:
            raise ValueError("sigmas are in dirichlet and in gaussian: leave one of them out")
        if "weights" in self.dirichlet and "update" in self.gaussian:
            raise ValueError("weights are in dirichlet and, as part of update, in gaussian: leave one of them out")
        for field in ("concentration", "std", "scale_std"):
            value = getattr(self, field)
            if not 0 < value < math.inf:
                raise ValueError(f"{field} = {value} must be positive and finite")


PARAMETRISATIONS = {
    "published": Parametrisation(("nodes", "weights"), log_normal=("slope_scale", "sigma_scale")),
    "ours": Parametrisation(("sigmas", "nodes"), ("update", "lookahead"), ("sigma_scale", "anchor_scale")),
    "whitened": Parametrisation(("nodes",), ("sigmas", "update", "lookahead"), ("sigma_scale", "anchor_scale")),
}
