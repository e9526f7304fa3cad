"""The labels of physics and the maps between them; the one vocabulary is `labels.json`, beside this file.

Three vocabularies: the 29 categories of WISA's five questions q0..q4 (dynamics, thermodynamics, optics, yes/no, change
of objects), the 17 of them that name a physical law, and PILA's eight mechanisms, in that order in every vector. What
surprises: WISA's own annotations do not always spell as its vocabulary does ("liquid objects appearance" against
"liquids objects appearance", full stops, stray blanks), so words are compared without plural s, punctuation and case;
and only laws map to mechanisms: what appears or splits (q4) says nothing about why.

References: WISA (Wang et al., 2025); PILA (Wang et al., 2026), data section. The map from laws to mechanisms is our
choice.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.resources import files
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["CATEGORIES", "LAWS", "MECHANISMS", "QUESTIONS", "Labels", "from_wisa"]

_DATA = json.loads(files("physexperts").joinpath("labels.json").read_text(encoding="utf-8"))

MECHANISMS: tuple[str, ...] = tuple(_DATA["mechanisms"])
"""PILA's eight mechanisms in the order of every label vector."""

QUESTIONS: dict[str, tuple[str, ...]] = {q: tuple(names) for q, names in _DATA["questions"].items()}
"""WISA's questions q0..q4 and the categories that answer them."""

CATEGORIES: tuple[tuple[str, str], ...] = tuple((q, name) for q, names in QUESTIONS.items() for name in names)
"""WISA's 29 categories as (question, name)."""

LAWS: tuple[str, ...] = tuple(_DATA["laws"])
"""WISA's 17 physical laws: the categories of q0..q2 that are not "no obvious ..."."""


@dataclass(frozen=True)
class Labels:
    """What is known of one clip.

    `mechanisms` in vector order, the `dominant` one of them, WISA's `categories` as (question, name), and the pieces of
    an annotation that no vocabulary holds (`unknown`). `source` says who read them ("keywords", "llm" or "cache"; empty
    for an annotation) and `description` what a language model made of the prompt first; neither matters to equality.

    >>> Labels.of(["fluid"]).multi_hot.tolist()
    [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """

    mechanisms: tuple[str, ...] = ()
    dominant: str | None = None
    categories: tuple[tuple[str, str], ...] = ()
    unknown: tuple[str, ...] = ()
    source: Literal["", "keywords", "llm", "cache"] = field(default="", compare=False, repr=False)
    description: str = field(default="", compare=False, repr=False)

    @classmethod
    def of(cls, names: Iterable[str], dominant: str | None = None) -> "Labels":
        """Label by name of mechanism; the first name is dominant unless one is given.

        >>> Labels.of(["collision", "rigid_body"])
        Labels(mechanisms=('rigid_body', 'collision'), dominant='collision', categories=(), unknown=())
        """
        names = list(names)
        for name in [*names, *([] if dominant is None else [dominant])]:
            if name not in MECHANISMS:
                raise ValueError(f"unknown mechanism {name!r}{_did_you_mean(name, MECHANISMS)}")
        if dominant is not None and dominant not in names:
            raise ValueError(f"expected the dominant mechanism among {names}, got {dominant!r}; add it to the labels")
        return cls(tuple(m for m in MECHANISMS if m in names), dominant or (names[0] if names else None))

    @property
    def multi_hot(self) -> Float[Tensor, "8"]:
        """One for each mechanism that is present."""
        return torch.tensor([float(m in self.mechanisms) for m in MECHANISMS])

    @property
    def laws(self) -> Float[Tensor, "17"]:
        """One for each of WISA's laws that is annotated."""
        present = {name for _, name in self.categories}
        return torch.tensor([float(law in present) for law in LAWS])

    @property
    def wisa(self) -> Float[Tensor, "29"]:
        """One for each of WISA's categories that is annotated."""
        return torch.tensor([float(category in self.categories) for category in CATEGORIES])


def from_wisa(annotation: Mapping[str, Any], unknown: Literal["error", "list"] = "error") -> Labels:
    """Read a WISA record (q0..q4 at the top or under `physical_annotation`) and map its laws to the eight mechanisms.

    The collection `label` picks the dominant mechanism where the answers agree with it, and is all there is where the
    answers name no law; otherwise the first mechanism in the order of the answers dominates. A `labels` list of
    mechanisms, as the simulated world writes it, wins over the mapping (`category` is then the dominant one, if it is a
    mechanism). A category outside the vocabulary raises ValueError, or is listed in `Labels.unknown`.

    >>> from_wisa({"q0": "liquid motion, deformation", "q1": "melting.", "label": "Melting "}).dominant
    'phase_change'
    """
    answers = annotation.get("physical_annotation")
    if _missing(answers):
        answers = annotation
    if not isinstance(answers, Mapping):
        raise ValueError(f"expected physical_annotation to be a mapping, got {type(answers).__name__}")
    categories, strangers = _answers(answers)
    named_as = _texts("label", annotation.get("label")) or _texts("label", answers.get("label"))
    label, odd = _category(named_as[0] if named_as else "")
    strangers += odd
    if strangers and unknown == "error":
        question, text = strangers[0]
        choices = QUESTIONS.get(question) or tuple(name for _, name in CATEGORIES)
        raise ValueError(f"unknown category {text!r} in {question!r}{_did_you_mean(text, choices)}")
    rest = tuple(text for _, text in strangers)
    given = annotation.get("labels")
    if isinstance(given, str | list | tuple) or not _missing(given):  # an empty list says that there are none
        explicit = _texts("labels", given)
        category = annotation.get("category")
        named = Labels.of(explicit, category if category in explicit else None)
        return Labels(named.mechanisms, named.dominant, categories, rest)
    named_by_label = _mechanisms([label] if label else [])
    ordered = _mechanisms(name for _, name in categories) or named_by_label
    dominant = next((m for m in named_by_label if m in ordered), ordered[0] if ordered else None)
    return Labels(tuple(m for m in MECHANISMS if m in ordered), dominant, categories, rest)


def _answers(answers: Mapping[str, Any]) -> tuple[tuple[tuple[str, str], ...], list[tuple[str, str]]]:
    """The categories of q0..q4 in the order of the annotation, and (question, text) of what is none."""
    found: dict[tuple[str, str], None] = {}
    strangers: list[tuple[str, str]] = []
    for question, names in QUESTIONS.items():
        pieces = _pieces("\n".join(_texts(question, answers.get(question))))
        for text in pieces[:1] if question == "q3" else pieces:  # "yes, a flame": the word counts, not its reason
            matches = _match(text, names)
            found |= {(question, name): None for name in matches}
            strangers += [] if matches else [(question, text)]
    return tuple(found), strangers


def _category(label: str) -> tuple[str | None, list[tuple[str, str]]]:
    """The category that the collection label names, whichever question it belongs to."""
    if not label.strip():
        return None, []
    matches = _match(label, tuple(name for _, name in CATEGORIES))
    return (matches[0], []) if matches else (None, [("label", label.strip())])


def _missing(value: Any) -> bool:
    """Whether a value says nothing: None, the NaN of an empty table cell, or empty."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or value in ("", [], (), {})


def _texts(key: str, value: Any) -> list[str]:
    """A text or a list of texts as a list, without what is missing; ValueError for anything else."""
    entries = list(value) if isinstance(value, list | tuple) else [value]
    if odd := [entry for entry in entries if not _missing(entry) and not isinstance(entry, str)]:
        raise ValueError(f"expected {key!r} to be text or a list of texts, got {odd[0]!r}")
    return [entry for entry in entries if not _missing(entry)]


def _pieces(text: str) -> list[str]:
    """Split "1. this\\n2. that" or "this, that" into its entries."""
    entries = re.split(r"[\n,;]|(?<!^)(?=\b\d+\. )", text)
    pieces = (re.sub(r"^\s*(?:\d+\s*[.)]|[-*])\s*", "", entry) for entry in entries)
    return [piece.strip() for piece in pieces if piece.strip(" .")]


def _match(text: str, names: Sequence[str]) -> list[str]:
    """The name that the text is or, as WISA's own reader does, those that it contains; a denial contains nothing."""
    known = {_key(spelling): name for spelling, name in _DATA["spellings"].items() if name in names}
    known |= {_key(name): name for name in names}
    key = _key(text)
    if key in known:
        return [known[key]]
    if set(key.split()) & set(_DATA["negations"]):
        return []
    return list(dict.fromkeys(name for phrase, name in known.items() if f" {phrase} " in f" {key} "))


def _key(text: str) -> str:
    """Compare without case, punctuation, plural s and British -isation."""
    text = text.lower().replace("isation", "ization").replace("phenomena", "phenomenon")
    words = re.sub(r"[^a-z0-9]+", " ", text).split()
    return " ".join(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words)


def _mechanisms(categories: Iterable[str]) -> list[str]:
    """Mechanisms of the laws among the categories, in their order, each once."""
    mapped = (m for name in categories for m in _DATA["law_to_mechanisms"].get(name, ()))
    return list(dict.fromkeys(mapped))


def _did_you_mean(text: str, choices: Sequence[str]) -> str:
    close = get_close_matches(text.lower(), choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(choices)}"
