"""`--model package.module:function` and `--model path/file.py:function`: models that people write themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from ..denoisers.checks import ModelError, check_members
from ..denoisers.own_function import failures_of, own_function
from ..denoisers.protocol import Model


def load_own_model(name: str, options: Mapping[str, object]) -> Model:
    """What the function returns when it is called with these options as keyword arguments.

    Args:
        name: `package.module:function`, found from the working directory, too, or `path/file.py:function`.
        options: the command's model options that were given, by name: `guidance=2.0`, `labels=(3, 1)`,
            `prompts=["a red fox"]`; and every entry of its `options` mapping, by its own name.

    Raises:
        ModelError: for a file or function that is not there or fails, options that the function's signature does not
            take or takes and misses, or a result that is no model.
    """
    function = own_function(name, "--model", ModelError)
    _check_signature(name, function, options)
    with failures_of(name, ModelError):
        model = function(**options)
    check_members(model)
    return model


def _check_signature(name: str, function: Callable[..., Model], options: Mapping[str, object]) -> None:
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    by_name = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes = ", ".join(by_name) or "no options"
    for option, value in options.items():
        if option not in by_name:
            raise ModelError(f"{option} = {value!r}: the function {name} has no argument {option!r}; it takes {takes}")
    needed = [p.name for p in by_name.values() if p.default is p.empty and p.name not in options]
    if needed:
        raise ModelError(
            f"the function {name} needs {needed[0]!r}: give --{needed[0].replace('_', '-')}, an entry of that name in "
            "--options '{...}', or a default in its signature"
        )
