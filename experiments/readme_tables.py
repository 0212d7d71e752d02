"""Puts the numbers of `experiments/results` into README.md and docs: `python -m epd.experiments.readme_tables`.

Between `<!-- results:NAME -->` and `<!-- /results -->` stands what the renderer NAME makes of its result file; nobody
writes a number there by hand. `--check` changes nothing and exits with 1 where the text is not what it should be.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.comparison import Comparison, errors_markdown
from ..formats.files import write_atomically
from . import acceleration_results, learned_results, refined_results, together_results
from .benchmarks import report, sharding
from .markdown import MISSING, markdown_table, measured_in
from .stepmix import page as stepmix
from .study import page as study

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- results:([\w-]+) -->\n)(.*?)(<!-- /results -->)", re.DOTALL)
Render = Callable[[Mapping[str, Any]], str]


def digits(result: Mapping[str, Any]) -> str:
    """What `digits_report` says of the embedded network."""
    away = result["rms_to_nearest_training_image"]
    rows = [
        ["samples whose digit a separate classifier recognises", f"{100 * result['class_agreement']:.1f} %"],
        ["the same at guidance 2", f"{100 * result['class_agreement_guidance_2']:.1f} %"],
        ["that classifier on held-out images", f"{100 * result['classifier']['accuracy_held_out']:.1f} %"],
        ["RMS distance of samples to the nearest training image", f"{away['samples']:.3f}"],
        ["the same of held-out images (a copying network would be far below)", f"{away['held_out_images']:.3f}"],
    ]
    return markdown_table(["the `digits` network", ""], rows) + "\n\n" + measured_in(result["environment"])


def pipeline(result: Mapping[str, Any]) -> str:
    """What `readme_pictures` has measured: stock and learned pictures of the same pipeline."""
    after, reference = result["after"], result["reference"]
    stock = [result["before"], result["equal"]]
    rows = [
        *([f"stock `{s['scheduler']}`", str(s["calls"]), str(s["calls"]), f"{s['rmse']:.4f}"] for s in stock),
        ["after `epd.enable`", str(after["calls"]), str(after["nfe"]), f"{after['rmse']:.4f}"],
    ]
    last = f"RMSE to {reference['calls']} stock steps"
    table = markdown_table(["the same pipeline", "sequential calls", "evaluations", last], rows)
    heading = f"Grey values in [0, 1], {result['samples']} pictures, same seeds and classes:"
    return f"{heading}\n\n{table}\n\n{measured_in(result['environment'])}"


def own_model(result: Mapping[str, Any]) -> str:
    """What `own_model_21cm` has measured of a published score network."""
    comparison = Comparison.from_json(json.dumps(result))
    return errors_markdown(comparison).strip() + "\n\n" + measured_in(comparison.environment)


# Marker -> (result file, or folder of them, how it is shown).
RENDERERS: dict[str, tuple[str, Render]] = {
    "digits": ("digits_training.json", digits),
    "pipeline": ("digits_pipeline.json", pipeline),
    "own-model": ("own_model_21cm.json", own_model),
    **{name: ("learned", render) for name, render in learned_results.RENDERERS.items()},
    **{name: ("refined", render) for name, render in refined_results.RENDERERS.items()},
    "together": ("together", together_results.table),
    **{name: ("acceleration", render) for name, render in acceleration_results.RENDERERS.items()},
    **{name: ("study", render) for name, render in study.RENDERERS.items()},
    **{name: ("stepmix", render) for name, render in stepmix.RENDERERS.items()},
    **report.RENDERERS,
    **sharding.RENDERERS,
}


def rendered(name: str, folder: Path = RESULTS) -> str:
    """What belongs between the markers of this name.

    Raises:
        ValueError: for a marker that no renderer serves, or a result that its renderer cannot read.
    """
    if name not in RENDERERS:
        raise ValueError(f"no renderer for <!-- results:{name} -->: known are {', '.join(RENDERERS)}")
    file, render = RENDERERS[name]
    path = folder / file
    if not path.exists():
        return MISSING
    try:
        content = learned_results.contents(path) if path.is_dir() else json.loads(path.read_text(encoding="utf-8"))
        return render(content).strip()
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        needs = f"what <!-- results:{name} --> needs"
        raise ValueError(f"{path} does not hold {needs}: {error!r}; measure again") from error


def filled(text: str, folder: Path = RESULTS) -> str:
    """The text with every marked place as the result files say."""
    marks = re.findall(r"<!-- results:", text)
    if len(marks) != len(BLOCK.findall(text)):
        raise ValueError("a <!-- results:NAME --> has no <!-- /results --> after it")
    return BLOCK.sub(lambda m: f"{m[1]}{rendered(m[2], folder)}\n{m[4]}", text)


def main(argv: Sequence[str] | None = None) -> int:
    """Fills the pages, or checks them."""
    parser = argparse.ArgumentParser(description="put the numbers of experiments/results into README.md and docs")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if anything would change")
    parser.add_argument("--files", type=Path, nargs="+", default=PAGES, help="the pages to fill")
    args = parser.parse_args(argv)
    stale = {path: new for path in args.files if (new := filled(text := path.read_text(encoding="utf-8"))) != text}
    for path, new in stale.items():
        if args.check:
            print(f"{path} is out of date: run `make readme`", file=sys.stderr)
        else:
            write_atomically(path, new.encode())
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
