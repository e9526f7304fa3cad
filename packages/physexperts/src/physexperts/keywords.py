"""The keyword parser: which mechanisms a plain caption names, by rules that can be read in `keywords.json`.

A word ending in * stands for every word that begins so, so that inflections count; a pattern is a regular expression.
What surprises: a keyword does not count after a denial ("without", "almost", "not"; "not only" is none) up to three
words before it, inside a name ("hot dog", "ice rink"), or in a sentence about camera, background or style. Who moves
decides: a droplet that slides is a flow, a blender that spins is a tool. A substance with a stated temperature changes
its phase if its melting or boiling point lies between that temperature and a room at 20 °C.

The rules were written against one half of 200 prompts labelled by hand; docs/labels.md has the guide and the scores.
"""

import json
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from physexperts.labels import MECHANISMS, Labels

__all__ = ["Keywords", "from_text"]

_RULES = json.loads(files("physexperts").joinpath("keywords.json").read_text(encoding="utf-8"))

_ROOM = 20.0  # degrees Celsius: the state in which a substance is expected before anything is said of it
_REACH = 80  # characters before a keyword that are read for a denial or a subject
_SUBJECT_SKIPS = {"is", "are", "was", "being", "gets", "get", "then", "that", "which", "and", "begins", "starts", "to"}


@dataclass(frozen=True)
class Keywords:
    """The parser that needs nothing: `parse` is `from_text`.

    >>> Keywords().parse("Two balls collide").mechanisms
    ('rigid_body', 'collision')
    """

    def parse(self, prompt: str) -> Labels:
        """Label a prompt by its words."""
        return from_text(prompt)


def from_text(caption: str) -> Labels:
    """Label a plain caption by its words; the most often named mechanism dominates, the earlier one on a tie.

    Impacts also move their bodies; a soft body that is hit deforms; combustion is heat and hot gas; a liquid that is
    named is taken to flow unless it changes phase. Words of bare motion ("pushes", "moves") count as rigid-body motion
    only where nothing else is named. A caption without a keyword has no labels, and the router decides alone.

    >>> from_text("Two balls collide and bounce without melting").mechanisms
    ('rigid_body', 'collision')
    """
    if not isinstance(caption, str):
        raise ValueError(f"expected a caption as text, got {type(caption).__name__}")
    text = _plain(caption)
    hits = {m: _hits(text, m) for m in MECHANISMS}
    for m in ("rigid_body", "collision"):
        hits[m] = [at for at in hits[m] if not _subject(text, at, "liquids")]
    hits["rigid_body"] = [at for at in hits["rigid_body"] if not _subject(text, at, "tools")]
    fire = _hits(text, "combustion")
    for m in ("thermal", "compressible_flow"):
        hits[m] = sorted({*hits[m], *fire})
    named = {m for m in MECHANISMS if hits[m]}
    changes = _by_temperature(text)
    named |= changes
    if "collision" in named:
        named |= {"rigid_body"} | ({"elastic"} if _pattern("soft").search(text) else set())
    if "phase_change" not in named and _flows(text):
        named.add("fluid")
    if re.search(r"\bboil(?:s|ing)?\b", text) and "phase_change" in named:
        named |= {"fluid"}
    if not named - {"collision"} and (weak := _hits(text, "weak")):
        named.add("rigid_body")
        hits["rigid_body"] = weak
    hits["thermal"] = sorted({*hits["thermal"]} - {*hits["phase_change"], *fire})  # shared words speak for the others
    present = tuple(m for m in MECHANISMS if m in named)
    dominant = min(present, key=lambda m: (-len(hits[m]), hits[m][:1] or [len(text)]), default=None)
    return replace(Labels(present, dominant), source="keywords")


def _plain(caption: str) -> str:
    """Lower case, without sentences about the picture itself and without names, which keep their length."""
    text = caption.lower().replace("’", "'")
    kept = (s for s in re.split(r"(?<=[.!?])\s+", text) if not _pattern("asides").match(s))
    return _pattern("names").sub(lambda hit: "_" * len(hit[0]), " ".join(kept) or text)


def _hits(text: str, group: str) -> list[int]:
    """Where the group's words and patterns stand, without those that are denied."""
    found = {hit.start() for hit in _pattern(group).finditer(text)}
    if group in _RULES["patterns"]:
        found |= {hit.start() for hit in _pattern(f"{group}:patterns").finditer(text)}
    return sorted(at for at in found if not _denied(text[max(0, at - _REACH) : at]))


@cache
def _pattern(group: str) -> re.Pattern[str]:
    if group.endswith(":patterns"):
        return re.compile("|".join(_RULES["patterns"][group.removesuffix(":patterns")]))
    if group == "asides":
        return re.compile("|".join(_RULES["asides"]))
    if group == "names":
        return re.compile(r"\b(?:" + "|".join(_RULES["names"]) + r")(?!\w)")
    words = _RULES["words"].get(group) or _RULES[group]
    ends = (re.escape(w[:-1]) + r"\w*" if w.endswith("*") else re.escape(w) + "s?" for w in words)
    return re.compile(r"\b(?:" + "|".join(ends) + r")\b")


def _denied(before: str) -> bool:
    """Whether one of the three words before denies what follows, in the same clause."""
    clause = re.split(r"[.,;:!?]|\bbut\b", before)[-1]
    clause = re.sub(r"\bnot (?:only|just|merely)\b", "", clause)
    words = clause.split()[-3:]
    return before.endswith("non-") or any(w in _RULES["negations"] or w.endswith("n't") for w in words)


def _subject(text: str, at: int, group: str) -> bool:
    """Whether the noun right before a verb belongs to a group: in "the droplet slowly slides" it is a liquid."""
    words = re.findall(r"[\w'-]+", re.split(r"[.,;:!?]", text[max(0, at - _REACH) : at])[-1])
    while words and (words[-1] in _SUBJECT_SKIPS or words[-1].endswith("ly")):
        words.pop()
    return bool(words) and bool(_pattern(group).fullmatch(words[-1]))


def _flows(text: str) -> bool:
    """Whether a liquid is named as itself: not the one in "water balloon", nor a denied one."""
    follows = re.compile(r"[\s-]+(?:" + "|".join(_RULES["adjectival"]) + r")s?\b")
    return any(
        not follows.match(text, hit.end()) and not _denied(text[max(0, hit.start() - _REACH) : hit.start()])
        for hit in _pattern("liquids").finditer(text)
    )


def _by_temperature(text: str) -> set[str]:
    """The change of phase that a stated temperature forces upon the first substance named."""
    number = r"(below |above |under |over )?(?<![\d.])([-−]?\d{1,6}(?:\.\d+)?)"
    stated = re.search(number + r" ?(?:°|degrees?) ?([cf])?", text)
    substance = re.search(r"\b(" + "|".join(_RULES["substances"]) + r")s?\b", text)
    if not stated or not substance:
        return set()
    celsius = float(stated[2].replace("−", "-"))
    celsius = (celsius - 32) / 1.8 if stated[3] == "f" else celsius
    celsius += {"below ": -1.0, "under ": -1.0, "above ": 1.0, "over ": 1.0}.get(stated[1] or "", 0.0)
    melts, boils = _RULES["substances"][substance[1]]
    before = 0 if substance[1] in ("ice", "snow", "dry ice", "ice cream") else (melts <= _ROOM) + (boils <= _ROOM)
    after = (melts <= celsius) + (boils <= celsius)
    if before == after:
        return set()
    return {"phase_change", "thermal"} | ({"fluid"} if before == 1 and after == 2 else set())
