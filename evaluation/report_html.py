"""HTML that holds everything itself: text is escaped here, pictures are data URIs, one style for light and dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --card: #f6f7f9; --ink: #20252c; --soft: #5b6470; --line: #dde1e6;
  --accent: #b30f29; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --card: #1d2127; --ink: #e4e7eb; --soft: #a3acb8; --line: #353c45; --accent: #ff7a8a; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 12px; }
h2 { font-size: 1.35rem; margin: 56px 0 8px; padding-top: 20px; border-top: 2px solid var(--line); }
h3 { font-size: 1.05rem; margin: 32px 0 8px; }
h1, h2, h3, p, dd, figcaption { overflow-wrap: anywhere; }
a { color: var(--accent); }
.verdict { border-left: 4px solid var(--accent); padding: 6px 14px; margin: 10px 0; font-size: 1.12rem; }
.verdict b { display: block; font-size: .85rem; color: var(--soft); font-weight: 600; }
.note, figcaption { color: var(--soft); font-size: .92rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .92rem; margin: 8px 0; }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.pairs td { overflow-wrap: anywhere; } .pairs th { width: 13rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 12px; overflow-x: auto;
  font: 13px/1.5 ui-monospace, monospace; margin: 8px 0; }
pre.wrap { white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 12px 0; min-width: 0; }
figure img { display: block; height: auto; background: #fff; border-radius: 6px; padding: 6px; }
.wide img { max-width: max(100%, 680px); }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 0 20px; }
.side img { width: max(100%, 520px); }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 0 20px; }
.samples img { max-width: 100%; }
summary { cursor: pointer; color: var(--soft); }
@media (max-width: 600px) { main { padding: 16px 12px 48px; } .pairs th { width: 8rem; } th, td { padding: 5px 6px; } }
"""
# Whatever a page is made to hold, a browser loads nothing for it and runs nothing in it.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Picture(NamedTuple):
    """A PNG with its words; `alt` says what is seen."""

    png: bytes
    alt: str
    caption: str = ""


def page(title: str, parts: Iterable[str]) -> str:
    """The whole page around parts that are HTML already."""
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'


def heading(level: int, text: str, anchor: str = "") -> str:
    """<h1> to <h3>."""
    place = f' id="{escape(anchor)}"' if anchor else ""
    return f"<h{level}{place}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of a class of the style."""
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def verdict(name: str, text: str, anchor: str) -> str:
    """A sentence that stands out, under its run's name."""
    return f'<p class="verdict"><b><a href="#{escape(anchor)}">{escape(name)}</a></b>{escape(text)}</p>'


def missing(what: str, command: str) -> str:
    """The one line in place of what a run lacks."""
    return f'<p class="note">{escape(what)}: <code>{escape(command)}</code></p>'


def preformatted(text: str, wrap: bool = False) -> str:
    """Text as it stands; with `wrap`, long lines are broken."""
    return f'<pre class="wrap">{escape(text)}</pre>' if wrap else f"<pre>{escape(text)}</pre>"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]], links: Sequence[str] = ()) -> str:
    """A table; columns after the first that hold numbers stand to the right. `links`: an anchor for each row."""
    kept = [list(row) for row in rows]
    numeric = [k > 0 and all(_is_number(row[k]) for row in kept) for k in range(len(head))]

    def line(tag: str, cells: Sequence[str], link: str = "") -> str:
        out = []
        for k, cell in enumerate(cells):
            text = f'<a href="#{escape(link)}">{escape(cell)}</a>' if link and k == 0 else _strong(cell)
            out.append(f'<{tag} class="number">{text}</{tag}>' if numeric[k] else f"<{tag}>{text}</{tag}>")
        return f"<tr>{''.join(out)}</tr>"

    names = [*links] or [""] * len(kept)
    body = "".join(line("td", row, link) for row, link in zip(kept, names, strict=True))
    return f'<div class="scroll"><table><thead>{line("th", head)}</thead><tbody>{body}</tbody></table></div>'


def _is_number(cell: str) -> bool:
    return not cell.strip("*") or cell.strip("*")[:1] in "0123456789.-–"


def _strong(cell: str) -> str:
    """Escaped; what Markdown makes bold is bold here."""
    if cell.startswith("**") and "**" in cell[2:]:
        bold, rest = cell[2:].split("**", 1)
        return f"<strong>{escape(bold)}</strong>{escape(rest)}"
    return escape(cell)


def markdown_tables(text: str) -> str:
    """Paragraphs and tables of the Markdown that comparisons write; nothing in it becomes markup of its own."""
    out = []
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        if lines[0].startswith("| "):
            head = _cells(lines[0], lines[0].count("|") - 1)
            out.append(grid(head, [_cells(line, len(head)) for line in lines[2:]]))
        else:
            plain = block.replace("**", "").replace("`", "").removeprefix("<sub>").removesuffix("</sub>")
            out.append(paragraph(plain, "note"))
    return "\n".join(out)


def _cells(line: str, count: int) -> list[str]:
    """As many cells of a row, whatever the name in its first one is made of."""
    cells = line.strip().removeprefix("|").removesuffix("|").rsplit("|", count - 1)
    return [cell.strip() for cell in [*cells, *[""] * (count - len(cells))]]


def pairs(values: Mapping[str, str]) -> str:
    """Names and values."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in values.items())
    return f'<table class="pairs"><tbody>{rows}</tbody></table>'


def folded(summary: str, content: str) -> str:
    """HTML that is opened when it is wanted."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>"


def pictures(shown: Sequence[Picture], kind: str = "wide") -> str:
    """Figures: `wide` ones below each other, scrolled where they would be too small to read; `side` ones and `samples`
    beside each other where there is room.
    """
    out = []
    for each in shown:
        data = base64.b64encode(each.png).decode()
        image = f'<div class="scroll"><img src="data:image/png;base64,{data}" alt="{escape(each.alt)}"></div>'
        caption = f"<figcaption>{escape(each.caption)}</figcaption>" if each.caption else ""
        out.append(f"<figure>{image}{caption}</figure>")
    return f'<div class="{escape(kind)}">{"".join(out)}</div>'


def png_of_figure(figure: Figure, dpi: int = 120) -> bytes:
    """A figure of matplotlib as PNG; the same figure makes the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, dpi=dpi, format="png")
    return buffer.getvalue()


def png_of_pixels(pixels: Tensor) -> bytes:
    """uint8 (H, W, 3) as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, format="PNG")
    return buffer.getvalue()
