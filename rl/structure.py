"""How the numbers that a policy samples become tables: one linear map, exponentials for noise levels and scales."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distill.config import GUIDANCE
from ..distill.free import fan_points, free_lookahead, free_update, on_simplex
from ..solvers.availability import Used
from ..solvers.parallel import Coefficients
from ..solvers.table import Provenance, Table
from .parametrisation import SCALES, Parametrisation

# Shares of a Dirichlet stay this far inside (0, 1): a table needs nodes inside (0, 1), and the density is infinite or
# zero on the border.
INSIDE = 1e-7
LARGEST_LOG_SCALE = 3.0  # factors on scales and shares saturate at e^3 and e^-3: no sample overflows
UPDATE = ("anchor", "weights", "memory")


@dataclass(frozen=True)
class _Row:
    """Numbers that are sampled together: value f adds matrix[f] to the table's entries at `targets`.

    Args:
        steps: (F,) the step that each belongs to.
        targets: (T,) positions in the flat table.
        matrix: (F, T).
        start: (F,) shares of the base, or standard deviations.
    """

    steps: Tensor
    targets: Tensor
    matrix: Tensor
    start: Tensor


@dataclass(frozen=True, eq=False)
class Structure:
    """The map from sampled values (B, E + D), E Dirichlet shares and D Gaussian coordinates, to tables.

    The flat table holds the inner noise levels as shares of the log range (where these are normal, changes of their
    logarithms), nodes, weights, and the logarithms of factors on the base's scales; it is offset + values @ matrix.
    Entries that no value reaches keep the base's bits.

    Args:
        base: the table that the mean values stand for.
        kind: what is sampled.
        steps: (E + D,) the step of each value.
        groups: (E, G) 0 or 1: which Dirichlet each share belongs to.
        shares: (E,) of the base, > 0.
        std: (D,) of the Gaussian coordinates at the start; their mean is 0.
        matrix: (E + D, Y).
        offset: (Y,).
        places: per field, which entries of the flat table are its own.
    """

    base: Table
    kind: Parametrisation
    steps: Tensor
    groups: Tensor
    shares: Tensor
    std: Tensor
    matrix: Tensor
    offset: Tensor
    places: dict[str, Tensor]

    @classmethod
    def of(cls, base: Table, kind: Parametrisation, mix: Tensor | None = None) -> Structure:
        """The structure of a base table.

        Args:
            mix: (D, D), what each Gaussian coordinate moves, in the coordinates that there are without it.

        Raises:
            ValueError: for a mix of another shape, where the weights shall be a Dirichlet and are not on the simplex,
                or where nothing is sampled.
        """
        if "weights" in kind.dirichlet and not on_simplex(base, {"weights"}):
            raise ValueError(
                "the base table's weights are not on the simplex, as it has free sums, or anchor or memory weights "
                "beside its points: a Dirichlet cannot sample them, take the parametrisation 'ours'"
            )
        places, offset = _flat(base, kind)
        simplices, gaussians = _dirichlet_rows(base, kind, places), _gaussian_rows(base, kind, places)
        rows = [*simplices, *gaussians]
        if not rows:
            raise ValueError(
                f"nothing of this table is sampled by {kind}: it may have no points, which is all that 'published' "
                "samples; take 'ours', or name what it has, such as nodes or update"
            )
        matrix = torch.zeros(sum(len(row.steps) for row in rows), len(offset), dtype=torch.float64)
        for row, part in zip(rows, matrix.split([len(row.steps) for row in rows]), strict=True):
            part[:, row.targets] = row.matrix
        if mix is not None:
            normals = sum(len(row.steps) for row in gaussians)
            if mix.shape != (normals, normals):
                raise ValueError(f"mix has shape {tuple(mix.shape)}, needed {(normals, normals)}: one row a coordinate")
            matrix[len(matrix) - normals :] = mix @ matrix[len(matrix) - normals :]
        for row in simplices:
            offset[row.targets] = 0.0
        empty = torch.zeros(0, dtype=torch.float64)
        shares = [row.start.clamp_min(INSIDE) / row.start.clamp_min(INSIDE).sum() for row in simplices]
        groups = torch.block_diag(*(torch.ones(len(row.steps), 1, dtype=torch.float64) for row in simplices))
        return cls(
            base=base,
            kind=kind,
            steps=torch.cat([row.steps for row in rows]),
            groups=groups if simplices else empty.reshape(0, 0),
            shares=torch.cat([empty, *shares]),
            std=torch.cat([empty, *(row.start for row in gaussians)]),
            matrix=matrix,
            offset=offset,
            places=places,
        )

    def require_same(self, other: Structure) -> None:
        """Raises ValueError unless the other one maps equal values to equal tables."""
        own, its = (dataclasses.replace(s.kind, concentration=1, std=1, scale_std=1) for s in (self, other))
        if self.base.digest != other.base.digest or own != its or not torch.equal(self.matrix, other.matrix):
            raise ValueError(
                f"the policies sample around the tables {self.base.digest[:8]}, by {own}, and {other.base.digest[:8]}, "
                f"by {its}: only policies of one base, parametrisation and mix can be compared"
            )

    def coefficients(self, values: Tensor) -> Coefficients:
        """The coefficients of every table, with a sample axis: values (B, E + D)."""
        fields = self._fields(values)
        fields["weights"] = fields["weights"] * fields.pop("slope_scale")
        if not self._samples("sigmas"):
            del fields["sigmas"]  # one row serves all
        moved = {name: field.movedim(0, -1) for name, field in fields.items()}
        return dataclasses.replace(self.base.coefficients(), used=self._used, **moved)

    def table(self, values: Tensor) -> Table:
        """The table of one sample's values (E + D,), validated, with the base as its parent."""
        fields = {name: field[0].numpy() for name, field in self._fields(values.detach()[None]).items()}
        base = self.base
        by_order = base.lookahead is None and not self._samples("lookahead")
        if by_order:
            del fields["lookahead"]
            if not self._samples("memory"):
                fields["memory"] = base.memory
        if not self._samples("sigmas"):
            fields["sigmas"] = base.sigmas
        return Table(
            **fields,
            order=base.order if by_order else 1,
            afs=base.afs,
            calls=base.calls,
            consistent=base.consistent,
            provenance=_child(base),
            **{name: getattr(base, name) for name in GUIDANCE if name not in self.places},
        )

    def _fields(self, values: Tensor) -> dict[str, Tensor]:
        """Every field of the tables, (B, ...) each."""
        flat = self.offset + values @ self.matrix
        fields = {name: flat[:, place] for name, place in self.places.items()}
        for name in _scales_of(self.kind):
            factors = fields[name].clamp(-LARGEST_LOG_SCALE, LARGEST_LOG_SCALE).exp()
            fields[name] = torch.tensor(getattr(self.base, name)) * factors
        first, last = torch.tensor(self.base.sigmas)[[0, -1]].log()
        ends = torch.tensor(self.base.sigmas).expand(len(values), -1)
        if "sigmas" in self.kind.gaussian:
            shares = torch.tensor(self.base.sigmas).log().diff() / (last - first)
            moved = fields["sigmas"].clamp(-LARGEST_LOG_SCALE, LARGEST_LOG_SCALE)
            fields["sigmas"] = (shares.log() + moved).softmax(1).cumsum(1)[:, :-1]
        inner = (first + (last - first) * fields["sigmas"]).exp()
        fields["sigmas"] = torch.cat([ends[:, :1], inner, ends[:, -1:]], 1)  # the ends are exact
        return fields

    def _samples(self, name: str) -> bool:
        return bool(self.matrix[:, self.places[name].flatten()].any())

    @property
    def _used(self) -> tuple[Used, ...]:
        """Sampled weights may use everything that is available; the others keep the base's zeros."""
        anchor, memory, lookahead = map(self._samples, ("anchor", "memory", "lookahead"))
        return tuple(
            Used(
                can.anchor if anchor else own.anchor,
                can.memory if memory else own.memory,
                can.lookahead if lookahead else own.lookahead,
            )
            for own, can in zip(self.base.used, self.base.available, strict=True)
        )


def _child(base: Table) -> Provenance:
    # What was measured holds for the parent.
    return dataclasses.replace(base.provenance, parent=base.digest, metrics={}, citation="arXiv 2512.22796")


def _scales_of(kind: Parametrisation) -> tuple[str, ...]:
    """The scales in the flat table; those of the guidance only where they are sampled, as its length rounds sums."""
    return (*SCALES, *(name for name in GUIDANCE if name in kind.log_normal))


def _flat(base: Table, kind: Parametrisation) -> tuple[dict[str, Tensor], Tensor]:
    """Where each field lies in the flat table, and the base as such."""
    c, scales = base.coefficients(), _scales_of(kind)
    logs = c.sigmas.log()
    inner = ((logs - logs[0]) / (logs[-1] - logs[0]))[1:-1]
    fields = {"sigmas": torch.zeros_like(logs[1:]) if "sigmas" in kind.gaussian else inner, "nodes": c.nodes}
    fields |= {"weights": torch.tensor(base.weights), "anchor": c.anchor, "memory": c.memory, "lookahead": c.lookahead}
    fields |= {name: torch.zeros(getattr(base, name).shape, dtype=torch.float64) for name in scales}
    places, size = {}, 0
    for name, field in fields.items():
        places[name] = torch.arange(size, size + field.numel()).reshape(field.shape)
        size += field.numel()
    return places, torch.cat([field.flatten() for field in fields.values()])


def _cumulative(count: int) -> Tensor:
    """(count + 1, count): a segment moves all points behind it."""
    return torch.ones(count + 1, count, dtype=torch.float64).triu()


def _dirichlet_rows(base: Table, kind: Parametrisation, places: dict[str, Tensor]) -> list[_Row]:
    steps, rows = base.num_steps, []
    if "sigmas" in kind.dirichlet and steps > 1:
        shares = torch.tensor(base.sigmas).log().diff()
        rows.append(_Row(torch.arange(steps), places["sigmas"], _cumulative(steps - 1), shares / shares.sum()))
    nodes, weights = torch.tensor(base.nodes), torch.tensor(base.weights)
    for n, evaluated in enumerate(fan_points(base)):
        count = int(evaluated.sum())
        if "nodes" in kind.dirichlet and count:
            inside, order = nodes[n, evaluated].sort()
            segments = torch.cat([inside.new_zeros(1), inside, inside.new_ones(1)]).diff()
            targets = places["nodes"][n, evaluated][order]
            rows.append(_Row(torch.full((count + 1,), n), targets, _cumulative(count), segments))
        if "weights" in kind.dirichlet and count > 1:
            one = torch.eye(count, dtype=torch.float64)
            rows.append(_Row(torch.full((count,), n), places["weights"][n, evaluated], one, weights[n, evaluated]))
    return rows


def _gaussian_rows(base: Table, kind: Parametrisation, places: dict[str, Tensor]) -> list[_Row]:
    rows, steps = [], base.num_steps
    if "sigmas" in kind.gaussian and steps > 1:
        sums = _sum_zero(steps)
        rows.append(_Row(torch.arange(steps - 1), places["sigmas"], sums, torch.full((steps - 1,), kind.std).double()))
    if "update" in kind.gaussian:
        update = torch.cat([places[name].reshape(steps, -1) for name in UPDATE], 1)
        free = free_update(base, frozenset(UPDATE))
        rows += [_row(n, update[n, free[n]], base.consistent, kind.std) for n in range(steps)]
    if "lookahead" in kind.gaussian:
        free = free_lookahead(base)
        each = [(n, j) for n in range(steps) for j in range(base.num_nodes)]
        rows += [_row(n, places["lookahead"][n, j, free[n, j]], base.consistent, kind.std) for n, j in each]
    fan = fan_points(base)
    called = torch.arange(steps) >= base.moves_first_call  # an analytic slope is told no level
    for name in kind.log_normal:
        free = called if name in ("anchor_scale", "anchor_guidance") else fan
        rows += [_row(n, places[name][n][free[n]].reshape(-1), False, kind.scale_std) for n in range(steps)]
    return [row for row in rows if len(row.steps)]


def _row(n: int, targets: Tensor, summed: bool, std: float) -> _Row:
    count = len(targets)
    matrix = _sum_zero(count) if summed else torch.eye(count, dtype=torch.float64)
    return _Row(torch.full((len(matrix),), n), targets, matrix, torch.full((len(matrix),), std, dtype=torch.float64))


def _sum_zero(count: int) -> Tensor:
    """(count - 1, count): orthonormal rows that sum to zero (Helmert), so that no weight is singled out."""
    ranks = torch.arange(1, max(count, 1), dtype=torch.float64)[:, None]
    one = torch.eye(count, dtype=torch.float64)
    return (one[:-1].cumsum(0) - ranks * one[1:]) / (ranks * (ranks + 1)).sqrt()
