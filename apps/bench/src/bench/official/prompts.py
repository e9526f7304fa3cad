"""Prompt lists: what a benchmark asks for, in the order of its own files.

A prompt's number is its place in the list, from 0; `group` is what the benchmark sorts by. Prompt set and rater are two
things: VideoPhy-2's rater can score VideoPhy's prompts, and then the result says so.
"""

import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from bench.official import tables
from bench.results import PromptSet, digest

DATA = Path(str(files("bench") / "data"))
MOST_PROMPTS = 100_000


@dataclass(frozen=True)
class Prompt:
    """One prompt. `facts` are what its list says about it; `names` what a video of it may be called, without an end."""

    number: int
    caption: str
    group: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The number as it stands in results and file names."""
        return f"{self.number:04d}"


@dataclass(frozen=True)
class PromptList:
    """Prompts by number and by caption."""

    name: str
    prompts: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError(f"expected prompts in {self.name}, got none")
        if len(self.prompts) > MOST_PROMPTS:
            raise ValueError(f"expected at most {MOST_PROMPTS} prompts in {self.name}, got {len(self.prompts)}")
        twice = [caption for caption, times in Counter(p.caption for p in self.prompts).items() if times > 1]
        if twice:
            raise ValueError(f"expected every caption of {self.name} once, got {twice[0]!r} twice")

    @cached_property
    def by_caption(self) -> dict[str, Prompt]:
        """Prompts by caption."""
        return {prompt.caption: prompt for prompt in self.prompts}

    @cached_property
    def by_name(self) -> dict[str, Prompt]:
        """Prompts by every name that a video of theirs may have: the number, or the caption in several spellings."""
        found: dict[str, Prompt] = {}
        for prompt in self.prompts:
            slug = prompt.caption.replace(" ", "_")
            for name in (prompt.id, *prompt.names, slug, slug.removesuffix("."), prompt.caption[:180]):
                found.setdefault(unicodedata.normalize("NFC", name), prompt)
        return found

    @property
    def record(self) -> PromptSet:
        """What a result says about the list."""
        captions = [prompt.caption for prompt in self.prompts]
        return PromptSet(name=self.name, count=len(captions), digest=digest(captions))


def load(name: str) -> PromptList:
    """Give the list of a benchmark ("videophy", "videophy2"), or that of a csv file with a column `caption`."""
    if name == "videophy":
        rows = tables.records(DATA / "videophy" / "prompts.csv", "caption", "states_of_matter", "complexity")
        return PromptList("VideoPhy test", tuple(_videophy(i, row) for i, row in enumerate(rows)))
    if name == "videophy2":
        rows = tables.records(DATA / "videophy2" / "prompts.csv", "caption", "upsampled_caption", "is_hard")
        return PromptList("VideoPhy-2 test", tuple(_videophy2(i, row) for i, row in enumerate(rows)))
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"expected 'videophy', 'videophy2' or a csv file with a column caption, got {name!r}")
    rows = tables.records(path, "caption")
    return PromptList(path.stem, tuple(Prompt(i, row["caption"]) for i, row in enumerate(rows)))


def _videophy(number: int, row: dict[str, str]) -> Prompt:
    return Prompt(number, row["caption"], row["states_of_matter"], {"hard": row["complexity"] == "1"})


def _videophy2(number: int, row: dict[str, str]) -> Prompt:
    """An empty `is_hard` is unknown, not easy."""
    group = {"1": "hard", "0": "not hard", "": "hardness unknown"}[row["is_hard"]]
    return Prompt(number, row["caption"], group, {"dense caption": row["upsampled_caption"]})
