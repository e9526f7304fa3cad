"""What papers and boards report, beside what is measured here and never mixed with it.

`published.yaml` holds blocks: one prompt set, one rater, one reading each, with a source for every row. A block is
shown beside a result of the same benchmark, with its prompt set and rater spelt out, since the same name ("Joint")
stands for different experiments; numbers are compared within a block at most.
"""

from functools import lru_cache
from importlib.resources import files

import yaml
from pydantic import model_validator

from bench.results import Strict

MARK = "reported, not measured here"


class Source(Strict):
    """Where a number comes from."""

    text: str


class Block(Strict):
    """One table of one experiment: `columns` maps a key to its heading; a row has `system`, `source` and some keys."""

    name: str
    benchmark: str
    prompt_set: str
    rater: str
    reading: str
    columns: dict[str, str]
    rows: tuple[dict[str, str | float], ...]

    @model_validator(mode="after")
    def _complete(self) -> "Block":
        for row in self.rows:
            if lost := {"system", "source"} - row.keys():
                raise ValueError(f"expected {', '.join(sorted(lost))} in a row of {self.name!r}, got {row}")
            if strange := row.keys() - self.columns.keys() - {"system", "source", "note"}:
                raise ValueError(f"expected columns of {self.name!r}, got {', '.join(sorted(strange))}")
        return self


class Published(Strict):
    """All blocks and their sources."""

    sources: dict[str, Source]
    blocks: tuple[Block, ...]

    @model_validator(mode="after")
    def _known(self) -> "Published":
        for block in self.blocks:
            if lost := {str(row["source"]) for row in block.rows} - self.sources.keys():
                raise ValueError(f"expected sources for {block.name!r}, got none for {', '.join(sorted(lost))}")
        return self

    def beside(self, benchmark: str) -> list[Block]:
        """Give the blocks of a benchmark."""
        return [block for block in self.blocks if block.benchmark == benchmark]


@lru_cache(maxsize=1)
def published() -> Published:
    """Read the shipped numbers.

    >>> published().beside("physics-iq")[0].rows[-1]["score"]
    29.59
    """
    return Published.model_validate(yaml.safe_load((files("bench") / "published.yaml").read_text(encoding="utf-8")))
