"""`shapes-exact` against a direct computation of the posterior mean, and its samples against the verifier."""

from __future__ import annotations

import functools
from pathlib import Path as FilePath

import numpy as np
import pytest
import torch
from helpers.command import Run
from torch import Tensor

from epd import cli
from epd.commands.models import load_model
from epd.denoisers.checks import check_model
from epd.denoisers.fingerprint import conditions_digest
from epd.denoisers.noise import unit_noise
from epd.denoisers.protocol import Model, Path
from epd.denoisers.shapes_exact import KERNEL, ShapesExact, shapes_exact
from epd.denoisers.shapes_verifier import verify
from epd.denoisers.shapes_world import prompt_of, scenes
from epd.pipelines.options import ModelOptions
from epd.solvers import rules, schedules
from epd.solvers.solve import solve

PATHS: list[Path] = ["ve", "flow"]
ASKED = ["a red cross above a blue square", "a green triangle", "a blue square below a red cross"]


@functools.cache
def components(prompt: str) -> Tensor:
    """(M, 768): the pictures of the mixture that the verifier finds to show the prompt, in [-1, 1]."""
    exact = shapes_exact()
    shown = exact.decode(exact.mixture.means.reshape(-1, 3, 16, 16)).float()
    kept = torch.cat([verify(part, [prompt] * len(part)).all for part in shown.split(512)]) == 1
    assert int(kept.sum()) == 16
    return exact.mixture.means[kept]


def by_hand(x: Tensor, sigma: float, path: Path, means: Tensor, weights: Tensor) -> Tensor:
    """E[x0 | x] of one state (768,) under a mixture of components of one width, from the densities."""
    alpha = 1 - sigma if path == "flow" else 1.0
    normal = torch.distributions.Normal(alpha * means, (alpha**2 * KERNEL**2 + sigma**2) ** 0.5)
    share = (normal.log_prob(x).sum(1) + weights.log()).softmax(0)
    ahead = means + alpha * KERNEL**2 / (alpha**2 * KERNEL**2 + sigma**2) * (x - alpha * means)
    return share @ ahead


def states(exact: ShapesExact, asked: list[str], sigma: float) -> Tensor:
    """(B, 3, 16, 16) that the forward process of the first component of each prompt reaches."""
    clean = torch.stack([components(prompt)[0] for prompt in asked]).reshape(-1, 3, 16, 16)
    alpha = 1 - sigma if exact.path == "flow" else 1.0
    return alpha * clean + sigma * unit_noise(range(len(asked)), exact.shape, torch.float64)


@pytest.fixture(scope="module", params=PATHS)
def exact(request: pytest.FixtureRequest) -> ShapesExact:
    return shapes_exact(request.param)


@pytest.mark.parametrize("level", range(3))
def test_posterior_mean_with_and_without_guidance(exact: ShapesExact, level: int) -> None:
    sigma = {"ve": [0.3, 3.0, 80.0], "flow": [0.2, 0.8, 1.0]}[exact.path][level]
    x, at = states(exact, ASKED, sigma), torch.tensor(sigma, dtype=torch.float64)
    flat = x.flatten(1)
    one = torch.tensor([scene.relation is None for scene in scenes() if scene == scene.canonical])
    prior = torch.tensor([0.6 / 264, 0.4 / 12], dtype=torch.float64)[one.long()].repeat_interleave(16) / 16
    free = torch.stack([by_hand(row, sigma, exact.path, exact.mixture.means, prior) for row in flat])
    flatly = torch.ones(16, dtype=torch.float64)
    bound = [by_hand(row, sigma, exact.path, components(prompt), flatly)
             for row, prompt in zip(flat, ASKED, strict=True)]  # fmt: skip
    for guidance in (1.0, 3.0):
        wanted = free + guidance * (torch.stack(bound) - free)
        answer = exact.bind(ASKED, guidance)(x, at)
        torch.testing.assert_close(answer.flatten(1), wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(exact(x, at).flatten(1), free, rtol=0, atol=1e-9)


def test_rows_are_independent_of_the_batch_and_points_sample_major(exact: ShapesExact) -> None:
    x = states(exact, ASKED, 0.5)
    levels = torch.tensor([0.5, 0.6, 0.7, 0.5, 0.4, 0.3], dtype=torch.float64)
    bound = exact.bind(ASKED, 3.0)
    doubled = torch.stack([x, 0.9 * x], 1).flatten(0, 1)
    together = bound(doubled, levels)
    for row, prompt in enumerate(ASKED):
        for point in range(2):
            k = 2 * row + point
            alone = exact.bind([prompt], 3.0)(doubled[k : k + 1], levels[k])
            torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=1e-11)
    # Both texts for the same pictures are one condition; single precision is its double's rounding.
    torch.testing.assert_close(
        exact.bind(ASKED[:1])(x[:1], levels[0]), exact.bind(ASKED[2:])(x[:1], levels[0]), rtol=0, atol=0
    )
    torch.testing.assert_close(bound(doubled.float(), levels).double(), together, rtol=0, atol=2e-2)
    with pytest.raises(ValueError, match="rows"):
        bound(torch.cat([x, x[:1]]), levels[0])


def test_gradient_goes_through_state_and_noise_level(exact: ShapesExact) -> None:
    bound = exact.bind(ASKED[:2], 3.0)
    x = states(exact, ASKED[:2], 0.9).requires_grad_()
    sigma = torch.tensor([0.9, 0.8], dtype=torch.float64, requires_grad=True)
    direction = unit_noise([7, 8], exact.shape, torch.float64)
    value = (bound(x, sigma) * direction).sum()
    to_x, to_sigma = torch.autograd.grad(value, (x, sigma))
    with torch.no_grad():
        step, along = 1e-5, unit_noise([9, 10], exact.shape, torch.float64)
        ahead, behind = (float((bound(x + s * along, sigma) * direction).sum()) for s in (step, -step))
        assert float((to_x * along).sum()) == pytest.approx((ahead - behind) / (2 * step), rel=1e-5, abs=1e-6)
        for k in range(2):
            one = torch.nn.functional.one_hot(torch.tensor(k), 2).double() * step
            ahead, behind = (float((bound(x, sigma + s * one) * direction).sum()) for s in (1, -1))
            assert float(to_sigma[k]) == pytest.approx((ahead - behind) / (2 * step), rel=1e-5, abs=1e-6)


def test_it_is_a_model_whose_seeds_stand_for_prompts() -> None:
    plain: Model = shapes_exact(guidance=3.0)
    check_model(plain, decode=True)
    given = shapes_exact(prompts=ASKED, guidance=3.0)
    assert given.prompts_of([0, 4, 5]) == [ASKED[0], ASKED[1], ASKED[2]]
    assert shapes_exact().prompts_of([11, 12]) == [prompt_of(11), prompt_of(12)]
    x, sigma = unit_noise([3, 4], given.shape, torch.float64), torch.tensor(2.0)
    assert torch.equal(given.for_seeds([3, 4])(x, sigma), given.bind([ASKED[0], ASKED[1]], 3.0)(x, sigma))
    assert plain.for_seeds([1]).__class__ is ShapesExact and plain.guidance == 3.0
    digests = [conditions_digest(model, [0, 1]) for model in (plain, given, shapes_exact(prompts=ASKED))]
    assert len(set(digests)) == 3 and digests[1] == conditions_digest(given, [3, 4])


def test_hostile_conditions_are_refused() -> None:
    for refused, message in [
        (lambda: shapes_exact(prompts=["a purple cross"]), "'purple' is no colour"),
        (lambda: shapes_exact().bind([]), "nothing to bind"),
        (lambda: shapes_exact().bind(["cross"]), "none of this world"),
        (lambda: shapes_exact(renderings=24), "renderings = 24: every prompt has 1 to 23"),
        (lambda: shapes_exact(renderings=0), "renderings = 0"),
        (lambda: load_model("shapes-exact", ModelOptions(labels=(3,))), "has no such option"),
        (lambda: load_model("digits-exact", ModelOptions(prompt=("a red cross",))), "has no such option"),
        (lambda: load_model("shapes-exakt"), "perhaps you meant 'shapes-exact'"),
    ]:
        with pytest.raises(ValueError, match=message):
            refused()


def converged(count: int, steps: int, guidance: float = 3.0) -> tuple[Tensor, list[str]]:
    asked = [scene.prompt for scene in scenes()][::7]
    exact = shapes_exact(prompts=asked, guidance=guidance)
    seeds = range(count)
    sigmas = schedules.polynomial(steps, exact.sigma_min, exact.sigma_max, 7.0)
    with torch.no_grad():
        x = solve(rules.dpmpp(2), exact.for_seeds(seeds), unit_noise(seeds, exact.shape), sigmas)
    return exact.decode(x), exact.prompts_of(seeds)


@pytest.mark.parametrize(("count", "steps"), [(40, 30), pytest.param(200, 100, marks=pytest.mark.slow)])
def test_converged_samples_show_what_was_asked_for(count: int, steps: int) -> None:
    assert float(verify(*converged(count, steps)).all.mean()) >= 0.98


def test_commands_take_it_with_prompts_and_guidance(run: Run, tmp_path: FilePath) -> None:
    (tmp_path / "p.txt").write_text("\n".join(ASKED))
    words = ["sample", "--model", "shapes-exact", "--guidance", "3", "--rule", "dpmpp2", "--calls", "12", "-n", "6"]
    assert run(*words, "--prompts", tmp_path / "p.txt", "--out", tmp_path / "a")[0] == cli.OK
    assert run(*words, "--prompt", *ASKED, "--batch", "4", "--out", tmp_path / "b")[0] == cli.OK
    with np.load(tmp_path / "a" / "samples.npz") as one, np.load(tmp_path / "b" / "samples.npz") as other:
        images = one["samples"]
        assert images.shape == (6, 16, 16, 3) and np.abs(images.astype(int) - other["samples"]).max() <= 1
    shown = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    assert float(verify(shown, ASKED * 2).all.mean()) == 1
    code, _, said = run(*words, "--prompt", "a red circle", "--out", tmp_path / "c")
    assert code != cli.OK and "'circle' is no shape" in said
