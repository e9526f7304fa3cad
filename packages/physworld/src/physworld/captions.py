"""Captions and what they promise: every word of this world, and the law's expected parameters from the text alone.

Each mechanism writes its own sentences and reads them back (`caption`, `expect`); here is the vocabulary that they
share and the way from any sentence to its mechanism. Words outside the vocabulary make a caption unreadable (None),
never silently ignored.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from physworld.clip import MECHANISMS
from physworld.mechanism import module

VOCABULARY = (
    "a", "air", "and", "ball", "beads", "between", "blast", "blasts", "blue", "bounces", "clockwise", "cold",
    "counterclockwise", "disk", "disks", "down", "fast", "from", "going", "gravity", "green", "grow", "grows", "hits",
    "hot", "ice", "in", "ink", "is", "it", "large", "left", "melt", "melts", "metal", "middle", "moves", "of", "on",
    "one", "plate", "plucked", "pond", "purple", "quickly", "red", "right", "ripple", "ripples", "sheet", "slit",
    "slits", "slow", "slowly", "small", "soft", "spot", "spots", "spread", "spreads", "spring", "sticks", "stiff",
    "strong", "swings", "the", "three", "through", "thrown", "to", "turns", "two", "under", "up", "very", "vortex",
    "vortices", "warm", "water", "wave", "weak", "yellow",
)  # fmt: skip
"""Every word that a caption of this world can hold."""


@dataclass(frozen=True)
class Expectation:
    """What a caption promises: the mechanism, the scenario and the law's parameters (ranges in px and frames)."""

    mechanism: str
    scenario: str
    parameters: dict[str, Any] = field(default_factory=dict)


def words(caption: str) -> list[str]:
    """Lower-case words of a caption without punctuation.

    >>> words("A ball, thrown.")
    ['a', 'ball', 'thrown']
    """
    return re.findall(r"[a-z]+", caption.lower())


def parse(caption: str) -> Expectation | None:
    """The expectation that a caption of this world fixes, or None for a sentence that this world does not know."""
    said = words(caption)
    if not said or not set(said) <= set(VOCABULARY):
        return None
    for mechanism in MECHANISMS:
        expected = module(mechanism).expect(said)
        if expected:
            return Expectation(mechanism, expected.get("scenario", ""), expected)
    return None
