"""The words of a command line, before there is a command: nothing is loaded for them."""

from __future__ import annotations

from collections.abc import Sequence


def split_verbosity(argv: Sequence[str]) -> tuple[list[str], int]:
    """The arguments without -v, -vv, -q, --verbose, --quiet, wherever they stand, and what they add up to."""
    rest, level = [], 0
    for i, word in enumerate(argv):
        if word == "--":
            return rest + list(argv[i:]), level
        if word in ("-v", "--verbose"):
            level += 1
        elif word.startswith("-vv") and set(word[1:]) == {"v"}:
            level += len(word) - 1
        elif word in ("-q", "--quiet"):
            level -= 1
        else:
            rest.append(word)
    return rest, level


def found(words: Sequence[str], option: str) -> tuple[str, slice] | None:
    """An option's first value, and where both stand."""
    for i, (word, following) in enumerate(zip(words, [*words[1:], ""], strict=False)):
        if word == option and following:
            return following, slice(i, i + 2)
        if word.startswith(f"{option}="):
            return word.split("=", 1)[1], slice(i, i + 1)
    return None


def spelled_out(words: Sequence[str]) -> list[str]:
    """`refine --policy acceleration ...` as the command that it stands for."""
    policy = found(words, "--policy")
    if list(words[:1]) != ["refine"] or policy is None or policy[0] != "acceleration":
        return list(words)
    at = policy[1]
    return ["refine-acceleration", *words[1 : at.start], *words[at.stop :]]
