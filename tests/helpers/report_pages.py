"""Reads a report's page as a browser would, and makes the runs that it is of."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

from epd.evaluation.comparison import Cell, Comparison
from helpers.command import table

VOID = {"meta", "img", "br"}
LOADING = {"src", "href", "srcset", "action", "data", "poster", "background", "xlink:href"}


class Page(HTMLParser):
    """Fails on tags that do not close in order; collects what is loaded, tags and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.words)

    @property
    def loaded(self) -> list[str]:
        return [value or "" for _, attrs in self.tags for name, value in attrs.items() if name in LOADING]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def cell(solver: str, asked: int, rmse: float, learned: bool = False, **changes: object) -> Cell:
    made = Cell(solver, solver, learned, asked, asked, asked, asked, "learned" if learned else "log SNR", rmse, 0.01)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def comparison(learned: str = "mine", **changes: object) -> Comparison:
    """Of the table of 5 calls and 8 evaluations, two hand-made solvers and a peer that is ahead of them."""
    cells = (
        cell(learned, 5, 0.063, True, evaluations=8, interval=(0.06, 0.066)),
        cell("iPNDM-2", 5, 0.1, interval=(0.09, 0.11)),
        cell("Euler", 5, 0.4),
        cell("GITS", 5, 0.05, training=1000),
        cell("iPNDM-2", 8, 0.09, interval=(0.05, 0.1)),
        cell("DPM++ 2M AFS", 8, 0.07, evaluations=7, calls=7, interval=(0.065, 0.075)),
        cell("GITS", 8, 0.01, training=1000),
    )
    made = Comparison(
        "digits-exact", "ve", 1.0, 16, 16, 0, "float32", 1e-5, 16, (5,), cells, {}, {"torch": "2", "device": "cpu"}
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def run_folder(path: Path, config: object = None, compared: Comparison | None = None) -> Path:
    """What `epd distill` leaves, and `epd compare --out RUN/compare`."""
    path.mkdir(parents=True)
    table().save(path / "solver.json")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    if compared is not None:
        (path / "compare").mkdir()
        (path / "compare" / "comparison.json").write_text(compared.to_json())
    return path
