"""What several verbs take: a model with its options, tables from wherever they are."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from ..accelerators.accelerate import recorded
from ..denoisers import shapes_32
from ..denoisers.protocol import Model
from ..denoisers.rows import RowLimited
from ..formats.texts import printable
from ..pipelines.find import FILES, TABLE_FILE, find_table
from ..pipelines.options import ModelOptions
from ..rl.task import Prompted, no_text
from ..solvers.table import Table, TableError
from .models import CLASSES, labels_of
from .options import ModelArguments

log = logging.getLogger("epd")


def model_options(options: ModelArguments) -> ModelOptions:
    """The part of a command's options that the model is made with."""
    return ModelOptions(**{name: getattr(options, name) for name in ModelOptions.model_fields})


def typed(*words: object) -> str:
    """Words as a shell takes them."""
    return shlex.join(map(str, words))


def command_line(model: str, options: ModelOptions) -> str:
    """A model with the options that are not left to it, as they are typed: `digits --guidance 2.0`."""
    words = [model]
    for name in options.chosen():
        value = getattr(options, name)
        words.append("--" + name.replace("_", "-"))
        if isinstance(value, dict):
            words.append(json.dumps(value))
        elif value is not True:
            words += map(str, value if isinstance(value, tuple) else [value])
    return typed(*words)


def texts_of(model: RowLimited, name: str, options: ModelOptions) -> Callable[[Sequence[int]], list[str]]:
    """What rewards are told of each seed's condition: its prompt, or its class in figures; empty where it has none.

    The classes of `shapes-32` are prompts.

    Args:
        name: that the model was loaded by, with these options.
    """
    whole, texts = model.model, options.texts
    if texts:
        return lambda seeds: [texts[seed % len(texts)] for seed in seeds]
    if name == "shapes-32":
        return lambda seeds: [shapes_32.classes()[label] for label in labels_of(name, options, seeds) or ()]
    if name in CLASSES or options.labels:  # a pipeline of classes is Prompted, too, with empty texts
        return lambda seeds: [str(label) for label in labels_of(name, options, seeds) or [""] * len(seeds)]
    return whole.prompts_of if isinstance(whole, Prompted) else no_text


def fits(table: Table, model: Model, source: str) -> None:
    """Warns where a table was learned for another model, refuses it where the path is another.

    Raises:
        TableError: for a table of another path.
    """
    provenance = table.provenance
    if provenance.path and provenance.path != model.path:
        text = f"{source} is for a {provenance.path} path, but {model.name} is {model.path}: learn one for it"
        raise TableError(text)
    if provenance.accelerators != (here := recorded(model)):
        text = "%s was learned with the accelerators %s, here are %s: its weights weigh what those leave of the slopes"
        log.warning(text, source, list(provenance.accelerators), list(here))
    if provenance.model and provenance.model != model.name:
        text = "%s was learned for %s, not for %s: expect worse than its metrics say"
        log.warning(text, source, printable(provenance.model), model.name)
    elif provenance.guidance is not None and provenance.guidance != model.guidance:
        log.warning("%s was learned at guidance %g, this is %g", source, provenance.guidance, model.guidance)


def named(sources: Sequence[str]) -> dict[str, Table]:
    """Tables by a short name: the end of their path without solver.json, as long as it takes to tell them apart."""
    parts = {source: _parts(source) for source in sources}
    different, length = {*parts.values()}, 1
    while len({own[-length:] for own in different}) < len(different):
        length += 1
    out: dict[str, Table] = {}
    for source, own in parts.items():
        short = str(Path(*own[-length:]))
        out[source if short in out else short] = find_table(source)
    return out


def _parts(source: str) -> tuple[str, ...]:
    path = Path(source)
    if path.name == TABLE_FILE and path.parent.name:
        return path.parent.parts
    return (path.with_suffix("") if path.suffix in FILES else path).parts or (source,)
