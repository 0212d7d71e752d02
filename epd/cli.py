"""The `epd` command: learn, sample, compare, look at tables, check the machine."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from . import __version__
from .formats.texts import perhaps, printable
from .words import found, spelled_out, split_verbosity

if TYPE_CHECKING:
    from .commands.command_options import CommandOptions

OK, FAILED, USAGE = 0, 1, 2


class Command(NamedTuple):
    """Where a command's options and its function live, both loaded only when it is called."""

    options: str
    function: str
    summary: str


COMMANDS = {
    "distill": Command("Distill", "distill:distill", "learn a solver for a frozen model"),
    "distill-feedback": Command(
        "DistillFeedback", "distill_feedback:distill_feedback", "learn inner-loop feedback for a frozen network"
    ),
    "refine": Command("Refine", "refine:refine", "refine a learned solver by rewards"),
    "refine-acceleration": Command(
        "RefineAcceleration", "refine_acceleration:refine_acceleration", "learn which network calls can be left out"
    ),
    "tune": Command("Tune", "tune:tune", "find the best learned solver within a budget on this machine"),
    "sample": Command("Sample", "sample:sample", "draw samples with a learned or hand-made solver"),
    "compare": Command("Compare", "compare:compare", "hold learned solvers against all hand-made ones"),
    "inspect": Command("Inspect", "inspect:inspect", "look at a solver's trajectories in TensorBoard"),
    "evaluate": Command("Evaluate", "evaluate:evaluate", "measure pictures: FID, KID, precision and recall, rewards"),
    "report": Command("Report", "report:report", "write a page of runs: verdict, plots, tables, samples, commands"),
    "table show": Command("TableShow", "table:show", "print a table"),
    "table convert": Command("TableConvert", "table:convert", "turn a published .pkl or .npz into our JSON"),
    "table diff": Command("TableDiff", "table:diff", "say where two tables differ"),
    "doctor": Command("Doctor", "doctor:doctor", "check this machine, with verdicts and remedies"),
}

OTHERS = {"experiments": "measure again what the pages show"}  # has no options of its own

# How a command that was interrupted is continued.
GO_ON = {
    "distill": "; add --resume to continue the run",
    "distill-feedback": "; add --resume to continue the run",
    "refine": "; add --resume to continue the run",
    "refine-acceleration": "; add --resume to continue the run",
    "tune": "; the same command again continues it",
    "sample": "; the same command again continues it",
    "compare": "; the same command again continues it",
    "evaluate": "; the same command again continues it",
}

# What a command that ran out of memory can do with less.
WITH_LESS = {
    "distill": "; give --rows 1, a smaller --batch, a larger --accumulate, or with Adam --checkpointing",
    "distill-feedback": "; give a smaller --batch, or --objective steps",
    "refine": "; give --rows 1, or a larger --accumulate",
    "refine-acceleration": "; give a larger --accumulate, or smaller --groups",
    "tune": "; give --rows 1",
    "sample": "; give --rows 1, or a smaller --batch",
    "compare": "; give --rows 1, or a smaller --batch",
    "inspect": "; give --rows 1, or a smaller --batch",
    "evaluate": "; give --rows 1, or a smaller --batch",
    "report": "; give --rows 1, or fewer --samples",
}

HELP = """usage: epd [-h] [--version] [-v | -q] COMMAND ...

Learned parallel ODE solvers for diffusion and flow models.

commands:
{commands}

options, before or after the command:
  -h, --help       this help, or that of a command: epd distill --help
  -v, --verbose    say more; twice: tracebacks of expected errors, too
  -q, --quiet      warnings and errors only
  --version        print the version
  --tyro-print-completion {{bash,zsh}}
                   print a completion script for the shell

exit codes:
  0  done; of `table diff`: equal; of `doctor`: nothing is bad
  1  failed or interrupted; of `table diff`: different; of `doctor`: something is bad
  2  usage: an unknown command or option, a value out of range, a config with a fault
"""


def help_text() -> str:
    """The overview: made without loading anything, so that it is there at once."""
    return HELP.format(commands=_listed({name: command.summary for name, command in COMMANDS.items()} | OTHERS))


def _listed(summaries: Mapping[str, str]) -> str:
    width = max(map(len, summaries))
    return "\n".join(f"  {name:<{width}}  {summary}" for name, summary in summaries.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 1 failed, 2 usage."""
    words, verbosity = split_verbosity(sys.argv[1:] if argv is None else argv)
    try:
        return _main(words, verbosity)
    except SystemExit as stop:  # tyro has said what is wrong
        return stop.code if isinstance(stop.code, int) else FAILED if stop.code else OK
    except KeyboardInterrupt:
        hint = GO_ON.get(words[0] if words else "", "")
        print(f"epd: interrupted{hint}", file=sys.stderr)
        return FAILED


def _main(words: list[str], verbosity: int) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(help_text(), end="", file=sys.stdout if words else sys.stderr)
        return OK if words else USAGE
    if words[0] == "--version":
        print(f"epd {__version__}")
        return OK
    if words[0].startswith("--tyro-"):
        return _completion(words)
    if words[0] == "experiments":
        return _experiment(words[1:], verbosity)
    words = spelled_out(words)
    name = _command(words)
    if name is None:
        return USAGE
    from .commands.logs import set_up_logging

    set_up_logging(verbosity)
    return _guarded(lambda: _called(name, words[len(name.split()) :]), name, verbosity)


def _experiment(words: list[str], verbosity: int) -> int:
    from .commands import experiments
    from .commands.logs import set_up_logging

    if words[:1] in (["-h"], ["--help"]):
        print(f"usage: epd experiments NAME ...\n\n{_listed(experiments.EXPERIMENTS)}")
        return OK
    typed = words[0] if words else ""
    if typed not in experiments.EXPERIMENTS:
        print(f"epd: error: {_unknown('experiment', typed, experiments.EXPERIMENTS)} (epd experiments --help)",
              file=sys.stderr)  # fmt: skip
        return USAGE
    set_up_logging(verbosity)
    return _guarded(lambda: experiments.run(typed, words[1:]), "experiments", verbosity)


def _command(words: list[str]) -> str | None:
    """The command that the words start with, or none after saying on stderr which there are."""
    for length in (2, 1):
        if " ".join(words[:length]) in COMMANDS:
            return " ".join(words[:length])
    group = [name for name in COMMANDS if name.split()[0] == words[0]]
    if group and {"-h", "--help"} & set(words[1:2]):
        print(_listed({f"epd {name}": COMMANDS[name].summary for name in group}))
        raise SystemExit(OK)
    typed = " ".join(words[: 2 if group else 1])
    print(f"epd: error: {_unknown('command', typed, group or [*COMMANDS, *OTHERS])} (epd --help)", file=sys.stderr)
    return None


def _unknown(kind: str, typed: str, known: Collection[str]) -> str:
    return f"no {kind} {typed!r}: {perhaps(typed, known)}there are {', '.join(known)}"


def _called(name: str, words: list[str]) -> int:
    options = _parse(name, words)
    module, function = COMMANDS[name].function.split(":")
    call: Callable[[Any], int] = getattr(importlib.import_module(f".commands.{module}", __package__), function)
    return call(options)


def _guarded(call: Callable[[], int], name: str, verbosity: int) -> int:
    """Does it, and says in a line what went wrong."""
    os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")
    # Threads that spin for long take the cores from whoever else computes; threads that never spin are woken for every
    # small product, which made training the embedded models 1.6 times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    from .commands.command_options import OptionsError
    from .commands.options import UsageError
    from .commands.yaml_config import ConfigError

    try:
        return call()
    except BrokenPipeError:  # the reader of our output has gone: nothing to say, and nobody to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (UsageError, OptionsError, ConfigError) as error:
        return _complain(error, USAGE, verbosity)
    except (ValueError, OSError, FloatingPointError, MemoryError, ImportError) as error:
        return _complain(error, FAILED, verbosity, WITH_LESS.get(name, "") if _is_out_of_memory(error) else "")
    except Exception as error:
        if _is_out_of_memory(error):
            return _complain(error, FAILED, verbosity, WITH_LESS.get(name, ""))
        from .denoisers.own_function import own_failure

        if not (text := own_failure(error)):  # ours, which somebody has to mend
            raise
        told = RuntimeError(text)
        told.__cause__ = error
        return _complain(told, FAILED, verbosity)


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has an error of its own for it, and plain RuntimeErrors that only say so."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    said = str(error).lower()
    texts = ("out of memory", "outofmemoryerror", "can't allocate memory", "alloc_failed")
    return "OutOfMemoryError" in kinds or "MemoryError" in kinds or any(text in said for text in texts)


def _complain(error: BaseException, code: int, verbosity: int, remedy: str = "") -> int:
    if verbosity >= 2:
        import traceback

        traceback.print_exception(error)
    text = str(error)
    if isinstance(error, OSError) and error.strerror:  # without its number
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    for line in text.splitlines() if code == USAGE else [" ".join(text.split())]:
        print(f"epd: error: {printable(line) or type(error).__name__}{remedy}", file=sys.stderr)
    return code


def _options(name: str) -> type[CommandOptions]:
    from .commands import options

    schema: type[CommandOptions] = getattr(options, COMMANDS[name].options)
    for field in schema.model_fields.values():  # the help breaks lines where they are full, not where the source does
        field.description = " ".join((field.description or "").split()) or None
    return schema


def _parse(name: str, words: list[str]) -> Any:  # noqa: ANN401 - the command's options
    import tyro

    schema, path = _options(name), found(words, "--config")  # which is read before anything else is parsed
    default: Any = tyro.MISSING
    if path is not None and "config" in schema.model_fields:
        from pathlib import Path

        from .commands.yaml_config import load_config

        default = load_config(Path(path[0]), schema)
    return tyro.cli(schema, prog=f"epd {name}", description=inspect.getdoc(schema), args=words, default=default)


def _completion(words: list[str]) -> int:
    """Lets tyro write its completion script for all commands."""
    from typing import Union

    import tyro

    def union(members: list[Any]) -> Any:  # noqa: ANN401 - a type that is made here
        return Union[tuple(members)]  # noqa: UP007

    kinds: dict[str, Any] = {n: Annotated[_options(n), tyro.conf.subcommand(n.split()[-1])] for n in COMMANDS}
    tables = union([kind for n, kind in kinds.items() if " " in n])
    tables = Annotated[tables, tyro.conf.subcommand("table", description="Look at, convert and compare tables.")]
    everything = union([*(kind for n, kind in kinds.items() if " " not in n), tables])
    tyro.cli(everything, prog="epd", args=words, config=(tyro.conf.OmitSubcommandPrefixes,))
    return OK


if __name__ == "__main__":
    sys.exit(main())
