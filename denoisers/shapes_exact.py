"""`shapes-exact`: the exact mixture of renderings of the world `shapes`. A prompt is a subset of its components."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .fingerprint import Dependencies
from .mixture import GaussianMixture
from .protocol import Path, beside, rows_per_condition, unguided
from .shapes_world import SHARE_OF_TWO, Scene, draw, layouts, parse, prompt_of, scenes

KERNEL = 0.02  # of each component; at 0.1 its noise costs pictures more of `graded` than solving with few calls does
RENDERINGS = 16  # of each prompt; more would cost more and be no harder


@dataclass(frozen=True, eq=False)
class ShapesExact:
    r"""E[x0 | x, prompt] with guidance, D = D_u + guidance (D_c - D_u); made by `shapes_exact`.

    With the common variance V of the components, v = alpha^2 V + sigma^2 and the M components mu_k of the prompt,

    g = softmax_k(alpha / v x . mu_k - alpha^2 / (2 v) |mu_k|^2);  D_c = sigma^2 / v sum_k g_k mu_k + alpha V / v x.

    Args:
        mixture: all components, scene by scene, with as many for each: D_u.
        prompts: dealt out to seeds; none: the prompt that a seed stands for, `shapes_world.prompt_of`.
        guidance: scale that `for_seeds` binds; 1 is plain conditioning.
        bound: (B,) the scene of each sample; None: unconditional.
    """

    mixture: GaussianMixture
    path: Path
    sigma_max: float
    prompts: tuple[str, ...] = ()
    guidance: float = 1.0
    bound: Tensor | None = None
    name: str = "shapes-exact"
    shape: tuple[int, ...] = (3, 16, 16)
    sigma_min: float = 0.002
    alphas_cumprod: None = None
    device: str = "cpu"

    def for_seeds(self, seeds: Sequence[int]) -> ShapesExact:
        """The model for the samples with these seeds, bound to the prompts that they stand for."""
        return self.bind(self.prompts_of(seeds), self.guidance)

    def prompts_of(self, seeds: Sequence[int]) -> list[str]:
        """The prompt of each sample: number seed mod the count of those given, or else the seed's own."""
        if self.prompts:
            return [self.prompts[seed % len(self.prompts)] for seed in seeds]
        return [prompt_of(seed) for seed in seeds]

    def bind(self, prompts: Sequence[str], guidance: float = 1.0) -> ShapesExact:
        """This model conditioned row by row.

        Args:
            prompts: B of them; a call then has B rows, or B x K rows sample-major.
            guidance: 1 is plain conditioning.

        Raises:
            ValueError: for no prompt, or one that is none of this world.
        """
        if not prompts:
            raise ValueError("there is nothing to bind: give at least one prompt")
        numbers = _numbers()
        bound = torch.tensor([numbers[parse(prompt).canonical] for prompt in prompts])
        return replace(self, guidance=float(guidance), bound=bound)

    def depends_on(self) -> Dependencies:
        """The mixture's constants and the scenes bound to samples."""
        whole = self.mixture.depends_on()
        rows = {} if self.bound is None else {"bound": self.bound}
        return Dependencies(rows={**whole.rows, **rows}, settings={**whole.settings, "guidance": self.guidance})

    def decode(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, 16, 16) in [0, 1] of states in [-1, 1]."""
        return self.mixture.decode(x)

    def at_guidance(self, x: Tensor, sigma: Tensor, factor: Tensor) -> Tensor:
        """D with the bound guidance scale times `factor`, 0-d or (B,).

        Raises:
            ValueError: where no guidance is bound.
        """
        if self.bound is None or self.guidance == 1.0:
            raise unguided(self.name)
        denoised, free = self._conditioned(x, sigma, self.bound.to(x.device)), self.mixture(x, sigma)
        return free + beside(self.guidance * factor, x).reshape(-1, 1, 1, 1) * (denoised - free)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self.bound is None:
            return self.mixture(x, sigma)
        denoised = self._conditioned(x, sigma, self.bound.to(x.device))
        if self.guidance == 1.0:
            return denoised
        free = self.mixture(x, sigma)
        return free + self.guidance * (denoised - free)

    def _conditioned(self, x: Tensor, sigma: Tensor, bound: Tensor) -> Tensor:
        means, norms = (part.unflatten(0, (len(_numbers()), -1))[bound] for part in self.mixture.constants(x)[:2])
        rows = x.reshape(len(bound), rows_per_condition(len(x), len(bound)), -1)  # (B, K, 768)
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=x.device).expand(len(x)).reshape(len(bound), -1, 1)
        alpha = 1 - sigma if self.path == "flow" else torch.ones_like(sigma)
        spread = alpha**2 * KERNEL**2 + sigma**2
        reach, half = (alpha / spread).to(x.dtype), (alpha**2 / spread / 2).to(x.dtype)
        share = (reach * (rows @ means.mT) - half * norms[:, None]).softmax(2)  # (B, K, M)
        pull, gain = (sigma**2 / spread).to(x.dtype), (alpha * KERNEL**2 / spread).to(x.dtype)
        return (pull * (share @ means) + gain * rows).reshape(x.shape)


def shapes_exact(
    path: Path = "ve", prompts: Sequence[str] = (), guidance: float = 1.0, renderings: int = RENDERINGS
) -> ShapesExact:
    """The exact model of the kernel-smoothed renderings; sigma runs from 0.002 to 80 (`ve`) or 1 (`flow`).

    Args:
        prompts: dealt out to seeds; none: a training prompt for each seed.
        guidance: the scale that `for_seeds` binds.
        renderings: of each prompt, 1 to 23.

    Raises:
        ValueError: for a prompt that is none of this world, or more renderings than some prompt has.
    """
    for prompt in prompts:
        parse(prompt)
    mixture = GaussianMixture(_renderings(renderings), KERNEL, _weights(renderings), path, name="shapes-exact")
    return ShapesExact(mixture, path, mixture.sigma_max, tuple(prompts), float(guidance))


@functools.cache
def _numbers() -> dict[Scene, int]:
    """The number of each scene that differs in its pictures: 12 of one object, then 264."""
    return {scene: number for number, scene in enumerate(s for s in scenes() if s == s.canonical)}


@functools.cache
def _renderings(count: int) -> Tensor:
    """(276 count, 3, 16, 16) float64 in [-1, 1], scene by scene, no two of a scene equal; always the same."""
    fewest = min(len(layouts(scene)) for scene in _numbers())
    if not 1 <= count <= fewest:
        raise ValueError(f"renderings = {count}: every prompt has 1 to {fewest}")
    parts = []
    for scene, number in _numbers().items():
        allowed = layouts(scene)
        chosen = torch.randperm(len(allowed), generator=torch.Generator().manual_seed(number))[:count]
        parts.append(draw(scene, allowed[chosen]))
    return torch.cat(parts).double() * 2 - 1


def _weights(count: int) -> Tensor:
    """(276 count,): as often one object and two as prompts ask for them, and all scenes of a kind alike."""
    two = torch.tensor([scene.relation is not None for scene in _numbers()])
    share = torch.where(two, SHARE_OF_TWO / two.sum().double(), (1 - SHARE_OF_TWO) / (~two).sum().double())
    return share.repeat_interleave(count)
