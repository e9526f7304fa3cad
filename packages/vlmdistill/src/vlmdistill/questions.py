"""What to ask a vision-language model: one question for each category of physics, and a neutral one beside them.

The templates and the vocabularies are data, `questions.json` beside this file. ProPhy's template puts the category's
name into one sentence; where the name is no phenomenon in English ("mixing of multiple objects", "phase_change") the
file holds a sentence of its own, which is our choice. What surprises: six of WISA's 29 categories name an absence or a
bare answer ("no change", "yes"). There is no place to look at for them, so they have no question (`PLACELESS`): they
get no map, and their entries of a target are masked.

References: ProPhy (Wang et al., 2025), the labels of the token level; WISA (Wang et al., 2025), the categories.
"""

import json
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.resources import files

__all__ = ["NEUTRAL", "PLACELESS", "VOCABULARIES", "did_you_mean", "question"]

_DATA = json.loads(files("vlmdistill").joinpath("questions.json").read_text(encoding="utf-8"))

NEUTRAL: str = _DATA["neutral"]
"""The question whose map is subtracted from that of a phenomenon."""

VOCABULARIES: dict[str, tuple[str, ...]] = {name: tuple(entries) for name, entries in _DATA["vocabularies"].items()}
"""The categories in the order of every vector: "laws" (WISA's 17), "wisa" (its 29) and "mechanisms" (the eight)."""

PLACELESS: frozenset[str] = frozenset(_DATA["placeless"])
"""Categories that name an absence or a bare answer: nothing to look at, no question."""


def question(category: str) -> str:
    """Return the question that asks for a category; ValueError for a stranger and for one of `PLACELESS`.

    >>> question("combustion")
    'Describe the combustion phenomenon in the video.'
    >>> question("mixing of multiple objects")
    'Describe the objects that mix in the video.'
    """
    if category in PLACELESS:
        raise ValueError(f"{category!r} names an absence, which is nowhere in a video: leave it out (PLACELESS)")
    known = tuple(dict.fromkeys(name for entries in VOCABULARIES.values() for name in entries))
    if category not in known:
        raise ValueError(f"unknown category {category!r}{did_you_mean(category, known)}")
    return _DATA["questions"].get(category) or _DATA["template"].format(category=category)


def did_you_mean(name: str, choices: Sequence[str]) -> str:
    """End a sentence about a name that is not among the choices.

    >>> did_you_mean("colision", ["collision", "melting"])
    "; did you mean 'collision'?"
    """
    close = get_close_matches(name.lower(), choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(choices)}"
