"""The golden data prove themselves: the formulas of their README, in plain numpy, give the recorded states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import golden
from helpers.golden import Array, Case

EULER = [c for c in golden.cases() if c.solver == "ddim" or c.solver == "epd" or (c.solver == "ipndm" and c.order == 1)]
EULER = [c for c in EULER if c.solver != "ipndm" or c.table is None]


def posterior_mean(x: Array, alpha: float, sigma: float, chosen: Array) -> Array:
    """E[x0 | x] under the components with chosen > 0."""
    m = golden.mixture()
    mu, s = m["mu"].reshape(10, -1), m["s"]
    variance = alpha**2 * s**2 + sigma**2
    away = x.reshape(-1) - alpha * mu
    with np.errstate(divide="ignore"):
        log = np.log(m["w"] * chosen) - (away**2).sum(1) / (2 * variance) - mu.shape[1] / 2 * np.log(variance)
    g = np.exp(log - log.max())
    g /= g.sum()
    return (g @ (mu + (alpha * s**2 / variance)[:, None] * away)).reshape(x.shape)


def denoiser(case: Case) -> Callable[[Array, float], Array]:
    """D(x, sigma) of one case, guidance and class included."""
    everything, some = np.ones(10), np.zeros(10)
    some[golden.mixture()["cond_components"]] = 1
    if case.net == "edm_class":
        everything = golden.mixture()["class_masks"][case.row % 5].astype(float)
    scale = {"sd15_cfg7.5": 7.5, "sd3_cfg4.5": 4.5, "sd3_nocfg": 1.0, "flux": 1.0}.get(case.net, 0.0)
    flow = case.schedule == "flowmatch"

    def denoise(x: Array, sigma: float) -> Array:
        alpha = 1 - sigma if flow else 1.0
        free = posterior_mean(x, alpha, sigma, everything)
        return free + scale * (posterior_mean(x, alpha, sigma, some) - free) if scale else free

    return denoise


def replay(case: Case) -> Array:
    """All states of an Euler or EPD case."""
    denoise = denoiser(case)
    path = [case.noise[0] * case.sigmas[0]]
    table = golden.tables()[case.table]["effective"] if case.table else None
    grid = [*case.sigmas, 0.0] if case.options["denoise_to_zero"] else [*case.sigmas]
    for n, (a, b) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        x = path[-1]
        d = x / np.sqrt(1 + a**2) if case.afs and n == 0 else (x - denoise(x, a)) / a
        if table is not None and b > 0:
            total = np.zeros_like(x)
            for r, w, gain, told in zip(
                *(table[k][n] for k in ("r", "weight", "scale_dir", "scale_time")), strict=True
            ):
                m = b**r * a ** (1 - r)
                y = x + (m - a) * d
                total += w * gain * (y - denoise(y, told * m)) / m
            d = total
        path.append(x + (b - a) * d)
    return np.stack(path)


@pytest.mark.parametrize("net", sorted({c.net for c in EULER}))
def test_the_formulas_give_the_states(net: str) -> None:
    for case in (c for c in EULER if c.net == net):
        np.testing.assert_allclose(replay(case), case.states, rtol=0, atol=1e-8, err_msg=case.id)


def test_what_the_folder_holds() -> None:
    assert len(golden.cases()) == 303 and len(golden.tables()) == 32
    assert sum(p.stat().st_size for p in Path(golden.FOLDER).iterdir()) < 3_000_000
    for case in golden.cases():
        assert (np.diff(case.sigmas) < 0).all() and case.sigmas[-1] > 0
        assert case.exact.shape == (3, 8, 8) and (case.table is None or case.table in golden.tables())
