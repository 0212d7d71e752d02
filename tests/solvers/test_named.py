"""The published tables that ship: their numbers are those of the golden record."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import golden

from epd import TableError
from epd.solvers.named import named_table, table_names

PUBLISHED = {name: record for name, record in golden.tables().items() if not name.startswith("synthetic")}
BY_ORIGIN = {named_table(name).provenance.metadata["published_name"]: name for name in table_names()}


def test_every_published_table_has_one_name() -> None:
    assert set(BY_ORIGIN) == set(PUBLISHED)
    assert BY_ORIGIN["sd15-best"] == "sd15-rdpo-10x2"
    assert BY_ORIGIN["flux-start"] == "flux-start-8x2"
    assert BY_ORIGIN["00017-cifar10-3-3-ipndm-uni1.0-afs"] == "cifar10-plugin-2x2"


@pytest.mark.parametrize("origin", sorted(PUBLISHED))
def test_numbers_are_the_published_ones(origin: str) -> None:
    table, record = named_table(BY_ORIGIN[origin]), PUBLISHED[origin]
    pairs = {"nodes": "r", "weights": "weight", "slope_scale": "scale_dir", "sigma_scale": "scale_time"}
    for ours, theirs in pairs.items():
        np.testing.assert_array_equal(getattr(table, ours), np.array(record["effective"][theirs]))
    case = next(c for c in golden.cases() if c.table in (origin, f"{origin}.json") and c.id.endswith("__f64"))
    np.testing.assert_array_equal(table.sigmas, case.sigmas)
    options = record["metadata"]
    assert table.afs == options["afs"]
    assert table.order == (options["max_order"] if options["sampler_stu"] == "ipndm" else 1)
    assert table.provenance.metadata["parameters"] == options
    assert table.provenance.citation == ("arXiv 2507.14797" if origin.startswith("000") else "arXiv 2512.22796")


@pytest.mark.parametrize("name", table_names())
def test_name_states_steps_and_points(name: str) -> None:
    table = named_table(name)
    assert name.endswith(f"-{table.num_steps}x{table.num_nodes}")
    assert table.provenance.path == ("flow" if name.startswith(("sd3", "flux")) else "ve")


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(TableError, match="'sd15-rdpo-10x2'.*cifar10-epd-2x2.*sd3-512-start-10x2"):
        named_table("sd15-rdpo-10x3")
    with pytest.raises(TableError, match="no published table is named '../table'"):
        named_table("../table")
