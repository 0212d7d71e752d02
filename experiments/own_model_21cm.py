"""A model that is not in diffusers: the score network of 21cmPSDenoiser, which denoises 21-cm power spectra.

    pip install --no-deps 21cmPSDenoiser                        # MIT; its weights are in the wheel
    pip install astropy einops                                  # of what it uses; the rest makes training data
    epd distill --model epd.experiments.own_model_21cm:make --calls 5 --out runs/21cm
    python -m epd.experiments.own_model_21cm                    # learns and compares, an hour and more on two cores

The network (arXiv 2507.00716, https://github.com/DanielaBreitman/21cmPSDenoiser) is a continuous-time VP model with
beta 0.1 to 20, conditioned on a noisy spectrum; its own sampler is RK45 from t = 1 to 1e-3. The simulations that it was
trained on are not in the wheel, so the conditions here are power laws of many heights and slopes with the scatter of
their modes: what is measured is the solver, not the cosmology.
"""

from __future__ import annotations

import argparse
import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..denoisers.networks import NetworkDenoiser
from ..denoisers.preconditioning import vp, vp_sigma
from ..distill.config import DistillConfig
from ..distill.learn import distill_each
from ..evaluation.compare import compare, write_comparison
from ..evaluation.comparison import markdown
from ..formats.files import write_atomically

RESULT = Path(__file__).parent / "results" / "own_model_21cm.json"
BETAS, FIRST_TIME = (0.1, 20.0), 1e-3


def make(device: str = "cpu") -> NetworkDenoiser:
    """The network as a model; seed s stands for the noisy spectrum number s."""
    package: Any = importlib.import_module("psdenoiser")  # the reader's, no dependency of this project
    network, constants = package.Denoiser(device=torch.device(device)).model, package.denoiser_csts
    k_perp, k_par, modes = (
        torch.as_tensor(part) for part in (constants.kperp.value, constants.kpar.value, constants.modes)
    )
    bias, scale = float(constants.noisy_bias[0]), float(constants.noisy_scale[0])
    low, high = vp_sigma(torch.tensor([FIRST_TIME, 1.0]), *BETAS).tolist()

    def spectra(seeds: Sequence[int]) -> dict[str, Tensor]:
        rows = torch.stack([_noisy_spectrum(seed, k_perp, k_par, modes) for seed in seeds])
        return {"noisy": ((rows.log10() - bias) / scale * 2 - 1).float()[:, None].to(device)}

    return NetworkDenoiser(
        call=lambda x, timestep, rows: network(x, timestep, x_cdn=rows["noisy"]),
        precondition=vp(*BETAS, "epsilon", FIRST_TIME, time_scale=999.0),
        shape=(1, len(k_perp), len(k_par)),
        sigma_min=low,
        sigma_max=high,
        name="21cmPSDenoiser",
        device=device,
        seed_rows=spectra,
    )


def _noisy_spectrum(seed: int, k_perp: Tensor, k_par: Tensor, modes: Tensor) -> Tensor:
    """P = 10^height (k / 0.1)^-slope with the relative scatter 1 / sqrt(modes), (kperp, kpar)."""
    generator = torch.Generator().manual_seed(seed)
    height, slope = (torch.rand(2, generator=generator) * torch.tensor([3.0, 1.5]) + torch.tensor([2.0, 1.0])).tolist()
    k = (k_perp[:, None] ** 2 + k_par[None] ** 2).sqrt()
    scatter = torch.randn(k.shape, generator=generator, dtype=torch.float64) / modes.clamp_min(1).sqrt()
    return 10**height * (k / 0.1) ** -slope * (1 + scatter).clamp_min(0.05)


def main() -> None:
    """Learns tables, compares them with every hand-made solver, and writes both into `--out`; goes on there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/21cm"))
    parser.add_argument("--calls", type=int, nargs="+", default=[5, 7])
    parser.add_argument("--iterations", type=int, default=160)
    parser.add_argument("--solvers", nargs="+", default=["hand-made"], help="to compare with")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = make(args.device)
    # A budget of minutes: the defaults would train on 16,384 spectra in 1,200 updates.
    config = DistillConfig(points=1, pool=160, validation=32, batch=16, screening=10, iterations=args.iterations)
    tables = distill_each(model, args.calls, config, args.out, resume=True)
    comparison = compare(
        model, {f"dense-1-{calls}": table for calls, table in tables.items()}, args.calls, samples=64, batch=32,
        tuning=8, tolerance=1e-4, solvers=args.solvers, keep=args.out / "cells",
    )  # fmt: skip
    write_comparison(comparison, args.out)
    write_atomically(RESULT, comparison.to_json().encode())
    print(markdown(comparison))


if __name__ == "__main__":
    main()
