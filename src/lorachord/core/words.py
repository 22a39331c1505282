"""Error messages that help: what was found, and the nearest thing that would have worked."""

from collections.abc import Iterable
from difflib import get_close_matches


def suggest(word: str, known: Iterable[str]) -> str:
    """A sentence naming what lies near `word` in `known`, or all of `known` if nothing does."""
    names = sorted(known)
    near = get_close_matches(word, names, n=3, cutoff=0.5)
    if near:
        return "Did you mean " + " or ".join(repr(name) for name in near) + "?"
    return "Known: " + (", ".join(names) if names else "none") + "."
