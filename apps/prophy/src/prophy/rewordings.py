"""Captions of the simulated world in other words, so that the semantic router reads more than its few sentences.

The world writes its captions from a handful of templates; real captions are free. `data/rewordings.json` holds patterns
with slots, and a caption fills them with its own words: its colours, sizes, directions. A caption that the world does
not know (a user's own clip) has no other words.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from backbones import Text
from physworld import captions

__all__ = ["Sentences", "reworded", "sentences"]


def reworded(caption: str) -> tuple[str, ...]:
    """Say a caption in every other way that the patterns know, in their order.

    >>> reworded("a small red ball is thrown to the left")[0]
    'small red ball thrown left'
    >>> reworded("a cat on a sofa")
    ()
    """
    known = captions.parse(caption)
    if known is None:
        return ()
    said, tree = captions.words(caption), _patterns()
    filled: dict[str, str] = {}
    for kind, members in tree["slots"].items():
        found = [word for word in said if word in members]
        filled |= {kind + (str(n) if n > 1 else ""): word for n, word in enumerate(found, start=1)}
    by_word = tree["patterns"][known.mechanism]
    fitting = [pattern for word, those in by_word.items() if word in said for pattern in those]
    return tuple(
        dict.fromkeys(p.format(**filled) for p in fitting if set(re.findall(r"\{(\w+)\}", p)) <= filled.keys())
    )


class Sentences:
    """What the router's own stage reads: `text`, `mask` and `labels` of sentences, each text kept once."""

    def __init__(
        self,
        text: Float[Tensor, "m l d"],
        mask: Bool[Tensor, "m l"],
        which: Int[Tensor, " n"],
        labels: Float[Tensor, "n L"],
    ) -> None:
        self.text, self.mask, self.which, self.labels = text, mask, which, labels
        parts = (text.numpy(), mask.numpy(), which.numpy(), labels.numpy())
        self.digest = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: rows[0] for name, rows in self.get_batch(torch.tensor([index])).items()}

    def get_batch(self, indices: Int[Tensor, " b"]) -> dict[str, Tensor]:
        """The rows `indices` of every column."""
        at = self.which[indices]
        return {"text": self.text[at], "mask": self.mask[at], "labels": self.labels[indices]}


def sentences(
    said: Sequence[str],
    labels: Float[Tensor, "n L"],
    embed: Callable[[Sequence[str]], Text],
    *,
    other_words: bool = True,
) -> Sentences:
    """Captions and their rewordings, all with the caption's labels; `embed` is asked for each sentence once."""
    groups = [(caption, *(reworded(caption) if other_words else ())) for caption in said]
    place = {sentence: i for i, sentence in enumerate(dict.fromkeys(s for group in groups for s in group))}
    text = embed(list(place))
    which = torch.tensor([place[s] for group in groups for s in group])
    owner = torch.tensor([i for i, group in enumerate(groups) for _ in group])
    return Sentences(text.features.float().cpu(), text.mask.cpu(), which, labels[owner])


@cache
def _patterns() -> dict[str, Any]:
    return json.loads(files("prophy").joinpath("data/rewordings.json").read_text(encoding="utf-8"))
