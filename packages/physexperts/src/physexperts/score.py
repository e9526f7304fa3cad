"""How well a parser's labels agree with labels given by hand: precision, recall and F1 of each mechanism.

Shares in [0, 1]; where a parser never names a mechanism its precision counts as 0. docs/labels.md has the figures.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from physexperts.labels import MECHANISMS
from physexperts.llm import Parser

__all__ = ["Score", "macro_f1", "score"]


@dataclass(frozen=True)
class Score:
    """Agreement on one mechanism; `true` of the prompts have it."""

    precision: float
    recall: float
    f1: float
    true: int


def score(parser: Parser, prompts: Iterable[tuple[str, Iterable[str]]]) -> dict[str, Score]:
    """Score a parser on (prompt, its mechanisms), mechanism by mechanism.

    >>> from physexperts import Keywords
    >>> score(Keywords(), [("Two balls collide", ["rigid_body", "collision"]), ("A cat", [])])["collision"]
    Score(precision=1.0, recall=1.0, f1=1.0, true=1)
    """
    pairs = [(set(parser.parse(text).mechanisms), set(names)) for text, names in prompts]
    table: dict[str, Score] = {}
    for m in MECHANISMS:
        right = sum(m in said and m in true for said, true in pairs)
        said, true = sum(m in s for s, _ in pairs), sum(m in t for _, t in pairs)
        table[m] = Score(right / max(said, 1), right / max(true, 1), 2 * right / max(said + true, 1), true)
    return table


def macro_f1(table: dict[str, Score]) -> float:
    """Average F1 over the mechanisms."""
    return sum(row.f1 for row in table.values()) / len(table)
