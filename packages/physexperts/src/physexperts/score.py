"""How well a parser's labels agree with labels given by hand: precision, recall and F1 of each mechanism.

Shares in [0, 1]; where a parser never names a mechanism its precision counts as 0. docs/labels.md has the figures.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from physexperts.labels import MECHANISMS, Labels
from physexperts.llm import Parser

__all__ = ["Score", "macro_f1", "score"]


@dataclass(frozen=True)
class Score:
    """Agreement on one mechanism; `true` of the prompts have it.

    >>> Score(precision=0.5, recall=1.0, f1=2 / 3, true=4).recall
    1.0
    """

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
    truth = [(text, Labels.of(names).mechanisms) for text, names in prompts]  # a misspelt name is an error, not a miss
    pairs = [(set(parser.parse(text).mechanisms), set(names)) for text, names in truth]
    table: dict[str, Score] = {}
    for m in MECHANISMS:
        right = sum(m in said and m in true for said, true in pairs)
        said, true = sum(m in s for s, _ in pairs), sum(m in t for _, t in pairs)
        table[m] = Score(right / max(said, 1), right / max(true, 1), 2 * right / max(said + true, 1), true)
    return table


def macro_f1(table: dict[str, Score]) -> float:
    """Average F1 over the mechanisms.

    >>> macro_f1({"fluid": Score(1.0, 1.0, 1.0, 3), "thermal": Score(0.0, 0.0, 0.0, 1)})
    0.5
    """
    return sum(row.f1 for row in table.values()) / len(table)
