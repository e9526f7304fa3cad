"""VideoPhy-2's three questions, and a strict reading of the answers.

The official parser takes the first number anywhere in the answer ("I rate 1 to 5: 4" is 1 to it). Here a scale that is
named is no answer, and an answer with no rating, two ratings, or one off the scale is none: it is counted and shown.

References: VideoPhy-2 (Bansal et al., 2025); the questions are those of github.com/Hritikbansal/videophy, VIDEOPHY2
(MIT).
"""

import re
from dataclasses import dataclass

TASKS = ("sa", "pc", "rule")
SYSTEM = (
    "You watch videos that a model has generated, given as frames in order, and rate them. You answer with one digit."
)
# Copyright (c) 2024 Hritikbansal, MIT
TEXTS = {
    "sa": 'Does this video match the description: "{about}"? Please rate the video on a scale from 1 to 5, where 5 '
    "indicates a perfect match and 1 indicates no relevance.",
    "pc": "Does this video adhere to the physical laws? Rate the video on a scale from 1 to 5, where 5 means full "
    "compliance and 1 means significant violations.",
    "rule": 'Does the video follow the physical rule: "{about}"? Choose 0 if not, 1 if valid, or 2 if indeterminate.',
}
SCALES = {"sa": range(1, 6), "pc": range(1, 6), "rule": range(3)}
WORDS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
_SCALE = re.compile(r"\b\d\s*(?:-|–|to|through|and)\s*\d\b|(?:/|\bout of)\s*\d+\b")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)")
MOST_ANSWER = 4000


@dataclass(frozen=True)
class Question:
    """One question: a task, and the caption or rule it is about (nothing for PC, which sees no caption)."""

    task: str
    about: str = ""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"expected a task among {', '.join(TASKS)}, got {self.task!r}")
        if bool(self.about) == (self.task == "pc"):
            raise ValueError(f"expected {'no text' if self.about else 'a text'} for {self.task}, got {self.about!r}")

    @property
    def text(self) -> str:
        """What the model is asked."""
        return TEXTS[self.task].replace("{about}", self.about)


def rating(answer: str, task: str) -> int | None:
    """Read an answer; none where it has not exactly one rating of the task's scale.

    >>> [rating(a, "pc") for a in ("4", "Rating: **4**/5.", "Scale 1 to 5: four", "4.5", "3 or 4", "None", "7")]
    [4, 4, 4, None, None, None, None]
    """
    words = _SCALE.sub(" ", answer[:MOST_ANSWER].lower().replace("*", " "))
    found = set(_NUMBER.findall(words)) | {str(n) for word, n in WORDS.items() if re.search(rf"\b{word}\b", words)}
    if len(found) != 1:
        return None
    only = found.pop()
    return int(only) if only.isdecimal() and int(only) in SCALES[task] else None
