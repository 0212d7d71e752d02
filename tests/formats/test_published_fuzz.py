"""Damaged files of published tables: cut at every length, and with any bytes changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.published_files import loss_meta, unframed
from helpers.published_refusal import TABLE, R, events_of, model
from hypothesis import given, settings
from hypothesis import strategies as st

from epd.formats.published import PublishedTableError, read_published


def test_truncated_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "cut.pkl"
    whole = unframed(model().data())
    path.write_bytes(whole)
    for length in reversed(range(len(whole))):
        os.truncate(path, length)
        message, _ = events_of(path)
        assert message is not None and "; allowed is " in message, length


VALID = unframed(model().data(loss_meta(4)))
PAYLOAD = [VALID.index(np.array(v, np.float32).tobytes()) for v in TABLE["raw"].values()]


def in_payload(position: int) -> bool:
    return any(start <= position < start + R.nbytes for start in PAYLOAD)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_mutated_bytes_give_the_same_numbers_or_the_error(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], cut: bool
) -> None:
    data = bytearray(VALID)
    for position, value in edits:
        if cut:
            del data[position % len(data)]
        else:
            data[position] = value
    path = tmp_path_factory.getbasetemp() / "mutated.pkl"
    path.write_bytes(data)
    try:
        found = read_published(path)
    except PublishedTableError:
        return
    assert all(np.isfinite(v).all() for v in found.raw.values())
    if not any(in_payload(position) for position, _ in edits):
        for key, value in TABLE["raw"].items():
            np.testing.assert_array_equal(found.raw[key], value)
