"""Denoisers made of networks: conditioning rows, guidance, dtypes. How each network is scaled: `preconditioning`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from .fingerprint import Dependencies
from .preconditioning import Preconditioning
from .protocol import Denoiser, Path, beside, capturing, coefficient_device, expand, rows_per_condition, unguided

Rows = Mapping[str, Tensor]  # conditioning by name, one row per sample
LEVELS = 1024  # whose coefficients are kept
NetworkCall = Callable[[Tensor, Tensor, Rows], Tensor]  # (scaled x (R, *S), timestep (R,), rows) -> output (R, *S)


def guided(denoise: Denoiser, x: Tensor, sigma: Tensor, guidance: float | Tensor) -> Tensor:
    """Classifier-free guidance D_u + guidance (D_c - D_u) in one doubled call.

    Args:
        denoise: serves 2 B rows, the unconditional ones first.
        x: (B, *S).
        sigma: 0-d or (B,).
        guidance: 0 is unconditional, 1 conditional (then use the conditional denoiser alone: it costs half); a number,
            0-d or (B,).

    Reference: arXiv 2207.12598, Eq. 6 with guidance = 1 + w.
    """
    both = denoise(torch.cat([x, x]), sigma if sigma.ndim == 0 else torch.cat([sigma, sigma]))
    free, bound = both.chunk(2)
    if isinstance(guidance, Tensor):
        return torch.lerp(free, bound, beside(guidance, x).reshape(-1, *[1] * (x.ndim - 1)))
    return torch.lerp(free, bound, guidance)


def noise_levels(x: Tensor, sigma: Tensor | float) -> Tensor:
    """sigma as float64 beside x (on the CPU where x's device has no float64), 0-d or (B,).

    Raises:
        ValueError: for another shape.
    """
    sigma = torch.as_tensor(sigma, dtype=torch.float64, device=coefficient_device(x.device))
    if sigma.ndim and sigma.shape != (len(x),):
        raise ValueError(f"sigma must be 0-d or have one entry per row of x, {len(x)}, got shape {tuple(sigma.shape)}")
    return sigma


class _Known:
    """What a preconditioning has made of levels: those of a schedule come again with every batch."""

    def __init__(self) -> None:
        self._of: Preconditioning | None = None
        self._numbers: dict[float, tuple[float, ...]] = {}

    def at(self, precondition: Preconditioning, sigma: Tensor) -> tuple[float, ...]:
        """Its coefficients as numbers; sigma is 0-d."""
        if self._of is not precondition or len(self._numbers) >= LEVELS:
            self._of, self._numbers = precondition, {}
        level = float(sigma.numpy())  # as constant as the schedule, also where the calls around it are recorded
        if level not in self._numbers:
            self._numbers[level] = tuple(float(c) for c in precondition(sigma))
        return self._numbers[level]


def _readable(sigma: Tensor) -> bool:
    """Whether its one number can be read without waiting for a device, and nothing is derived by it."""
    return (
        type(sigma) is Tensor and sigma.ndim == 0 and sigma.is_cpu and not torch.is_grad_enabled()
        and unpack_dual(sigma).tangent is None and not torch.compiler.is_compiling()
    )  # fmt: skip


def _same_count(rows: Rows) -> int:
    counts = {name: len(value) for name, value in rows.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"conditioning must have the same number of rows under every name, got {counts}")
    return next(iter(counts.values()), 0)


def _repeated(value: Tensor, repeat: int) -> Tensor:
    return value if repeat == 1 else value.repeat_interleave(repeat, 0)


@dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """D(x, sigma) = c_skip x + c_out F(c_in x, c_noise; rows), guided by a doubled call where guidance is not 1.

    Coefficients are float64, the network runs in `dtype`, the sum is formed in float32 (float64 for float64 states) and
    returned in the dtype of x. Nothing waits for the device.

    Args:
        call: the network, `(x (R, *S), timestep (R,), rows) -> (R, *S)`; twice as many channels are read as a learned
            variance and its half is dropped.
        precondition: sigma -> (c_skip, c_out, c_in, c_noise).
        shape: one sample.
        sigma_min, sigma_max: the range that the network was trained for.
        path: `ve` or `flow`.
        name: what tables record as the model that they were learned for.
        device: where conditioning rows are put, and states are made.
        dtype: the network's; timesteps are float32 (float64 for a float64 network).
        guidance: scale that `for_seeds` binds, and that a bound denoiser applies.
        null: the unconditional rows, one row for all samples; what an unbound denoiser uses and guidance starts from.
        condition: the name under which `bind` files a bare tensor.
        seed_rows: seeds -> conditioning, for `for_seeds`; without it a seed stands for no condition.
        picture: x0 -> pictures in [0, 1]; by default x/2 + 1/2.
        alphas_cumprod: (T,), of a network trained on discrete timesteps.
        networks: whose weights `call` evaluates: caches and runs are then proven by a fingerprint of these, not by
            evaluating them.
        prediction: what the network predicts; recorded with tables.
        resolution: pixels; recorded with tables.
    """

    call: NetworkCall
    precondition: Preconditioning
    shape: tuple[int, ...]
    sigma_min: float
    sigma_max: float
    path: Path = "ve"
    name: str = "network"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    guidance: float = 1.0
    null: Rows = field(default_factory=dict)
    condition: str = "class_labels"
    seed_rows: Callable[[Sequence[int]], Rows | Tensor] | None = None
    picture: Callable[[Tensor], Tensor] | None = None
    alphas_cumprod: Tensor | None = None
    networks: tuple[nn.Module, ...] = ()
    prediction: str = ""
    resolution: tuple[int, ...] = ()
    _rows: Rows | None = None  # bound, (B, ...) each
    _free: Rows | None = None  # their unconditional partners, when guided
    _expanded: dict[int, dict[str, Tensor]] = field(default_factory=dict, init=False)  # by number of states of a call
    _known: _Known = field(default_factory=lambda: _Known())

    def __post_init__(self) -> None:
        if self.path not in ("ve", "flow"):
            raise ValueError(
                f"{self.name}: path = {self.path!r} is unknown, give 've' or 'flow'; a VP network is 've' here, with "
                "preconditioning.vp or one for discrete timesteps"
            )

    def bind(
        self, rows: Rows | Tensor | Sequence[int], guidance: float = 1.0, negative: Rows | Tensor | None = None
    ) -> NetworkDenoiser:
        """This denoiser for these samples: B conditioning rows serve calls of B, or of B x K rows sample-major.

        Args:
            rows: class labels, embeddings or any named tensors, B rows each.
            guidance: D_u + guidance (D_c - D_u); 1 makes no second evaluation.
            negative: the unconditional rows, 1 or B; by default the model's own.

        Raises:
            ValueError: for names or row counts that do not fit, or guidance without unconditional rows.
        """
        bound = self._named(rows)
        count = _same_count(bound)
        if count == 0:
            raise ValueError("there is nothing to bind: give at least one conditioning row")
        free = None if guidance == 1.0 else self._partners(bound, count, negative)
        return replace(self, guidance=float(guidance), _rows=bound, _free=free)

    def _named(self, rows: Rows | Tensor | Sequence[int]) -> dict[str, Tensor]:
        named = rows if isinstance(rows, Mapping) else {self.condition: torch.as_tensor(rows)}
        return {name: value.to(self.device) for name, value in named.items()}

    def _partners(self, bound: Rows, count: int, negative: Rows | Tensor | None) -> dict[str, Tensor]:
        free = self._named(self.null if negative is None else negative)
        if set(free) != set(bound):
            raise ValueError(
                f"guidance needs unconditional rows for {sorted(bound)}, got them for {sorted(free)}: "
                "give negative=, or bind with guidance=1.0"
            )
        repeat = rows_per_condition(count, _same_count(free))
        return {name: value.repeat_interleave(repeat, 0) for name, value in free.items()}

    def for_seeds(self, seeds: Sequence[int]) -> NetworkDenoiser:
        """Bound to the condition that each seed stands for, with this model's guidance."""
        return self if self.seed_rows is None else self.bind(self.seed_rows(seeds), self.guidance)

    def depends_on(self) -> Dependencies | None:
        """Networks, bound rows and guidance; None where the networks are not known."""
        if not self.networks:
            return None
        parts = {"null": self.null, "bound": self._rows or {}, "free": self._free or {}}
        rows = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        return Dependencies(self.networks, rows, {"guidance": self.guidance, "dtype": str(self.dtype)})

    def decode(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [0, 1] of finished states."""
        return (x / 2 + 0.5).clamp(0, 1) if self.picture is None else self.picture(x)

    def _rows_for(self, count: int) -> Rows:
        """Conditioning for a call of `count` states; for a guided one 2 count rows, the unconditional ones first."""
        if count not in self._expanded:
            for oldest in [*self._expanded][:-1]:  # anchors and fans take turns; more copies may be large
                del self._expanded[oldest]
            self._expanded[count] = self._expand(count)
        return self._expanded[count]

    def _expand(self, count: int) -> dict[str, Tensor]:
        rows = self.null if self._rows is None else self._rows
        if rows:
            repeat = rows_per_condition(count, _same_count(rows))
            rows = {name: _repeated(value, repeat) for name, value in rows.items()}
            if self._free is not None:
                rows = {n: torch.cat([_repeated(self._free[n], repeat), v]) for n, v in rows.items()}
        return dict(rows)

    def at_guidance(self, x: Tensor, sigma: Tensor, factor: Tensor) -> Tensor:
        """D with the bound guidance scale times `factor`, 0-d or (B,).

        Raises:
            ValueError: where no guidance is bound.
        """
        if self._free is None:
            raise unguided(self.name)
        return self._denoised(x, sigma, self.guidance * factor)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._denoised(x, sigma, self.guidance)

    def _denoised(self, x: Tensor, sigma: Tensor, guidance: float | Tensor) -> Tensor:
        told = noise_levels(x, sigma)
        if told.ndim and told.stride() == (0,):
            told = told[0]  # the same for all rows: coefficients are numbers then, and not columns
        count = x.shape[0]  # of a tensor `len` takes longer
        # A graph must not read copies that may be thrown away while it lives: it makes its own.
        rows = self._expand(count) if capturing(x) else self._rows_for(count)
        work = x if x.dtype in (torch.float32, torch.float64) else x.float()
        if self._free is None:
            return self._evaluate(work, told, rows).to(x.dtype)
        return guided(lambda x, sigma: self._evaluate(x, sigma, rows), work, told, guidance).to(x.dtype)

    def _evaluate(self, x: Tensor, sigma: Tensor, rows: Rows) -> Tensor:
        times = torch.float64 if self.dtype == torch.float64 else torch.float32
        if _readable(sigma):
            c_skip, c_out, c_in, c_noise = self._known.at(self.precondition, sigma)
            timestep = x.new_full((x.shape[0],), c_noise, dtype=times)
        else:
            *factors, c_noise = self.precondition(sigma)
            c_skip, c_out, c_in = (expand(c, x) for c in factors)
            timestep = c_noise.to(times).to(x.device).expand(len(x))
        output = self.call((c_in * x).to(self.dtype), timestep, rows)
        output = self._checked(output, x).to(x.dtype)
        return c_skip * x + c_out * output

    def _checked(self, output: Tensor, x: Tensor) -> Tensor:
        if output.shape != x.shape and output.shape == (len(x), 2 * x.shape[1], *x.shape[2:]):
            output = output[:, : x.shape[1]]
        if output.shape != x.shape or not output.is_floating_point():
            raise ValueError(
                f"{self.name}: the network returned {output.dtype} of shape {tuple(output.shape)}, expected floating "
                f"point of shape {tuple(x.shape)} (or twice the channels, for a learned variance)"
            )
        return output
