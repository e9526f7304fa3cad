"""The label vector of a clip in the vocabulary of a recipe: eight mechanisms, WISA's 17 laws or its 29 categories.

The same vector teaches the semantic router (which videos are alike) and says which token targets count.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from physexperts import CATEGORIES, LAWS, MECHANISMS, Labels, from_text, from_wisa
from trainers.data import Record

__all__ = ["Vocabulary", "labels_of", "names", "said_in", "shuffled", "vector"]

Vocabulary = Literal["mechanisms", "laws", "wisa"]

_NAMES: dict[str, tuple[str, ...]] = {
    "mechanisms": MECHANISMS,
    "laws": LAWS,
    "wisa": tuple(name for _, name in CATEGORIES),
}


def names(vocabulary: Vocabulary) -> tuple[str, ...]:
    """The names of the vector's entries.

    >>> len(names("mechanisms")), len(names("laws")), len(names("wisa"))
    (8, 17, 29)
    """
    return _NAMES[vocabulary]


def vector(labels: Labels, vocabulary: Vocabulary) -> Float[Tensor, " L"]:
    """The multi-hot vector of a clip's labels."""
    return {"mechanisms": labels.multi_hot, "laws": labels.laws, "wisa": labels.wisa}[vocabulary]


def labels_of(record: Record, *, fallback: str, on_unknown: Literal["error", "list"]) -> Labels:
    """The labels of a record: its own mechanisms, its WISA answers, or (`keywords`) what its caption says."""
    if record.labels and not record.annotation and all(label in MECHANISMS for label in record.labels):
        return Labels.of(record.labels)
    if record.labels or record.annotation:
        mechanisms = [label for label in record.labels if label in MECHANISMS]
        annotation = {**record.annotation, "label": "" if mechanisms or not record.labels else record.labels[0]}
        if mechanisms:
            annotation["labels"] = mechanisms
        return from_wisa(annotation, unknown=on_unknown)
    return Labels() if fallback == "none" else from_text(record.caption)


def said_in(prompt: str, vocabulary: Vocabulary) -> Float[Tensor, " L"]:
    """The categories that a prompt speaks of: mechanisms by keywords; others where the prompt says their names.

    >>> said_in("the melting of ice", "laws").sum().item()
    1.0
    """
    if vocabulary == "mechanisms":
        return vector(from_text(prompt), "mechanisms")
    return torch.tensor([float(name in prompt.lower()) for name in names(vocabulary)])


def shuffled(rows: Float[Tensor, "n L"], seed: int) -> Float[Tensor, "n L"]:
    """The same label vectors on other clips: what a router learns from these is what chance gives."""
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
