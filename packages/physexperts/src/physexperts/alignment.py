"""What a router should know about its videos: similar labels, similar routing (ProPhy's L_coarse), or plainly the
labels.

Relative alignment compares *pairs* of videos, so its batch is everything that one optimizer step sees: micro-batches of
one video have no pairs and would train nothing. Either collect the routers' outputs of all micro-batches and ranks
first (`collect`, two passes: the video-level router reads the text alone, so the first pass is cheap), which is exact;
or keep the last outputs in a `PairQueue`, one pass, slightly stale. Rows without any label say nothing about similarity
and leave the pairs.

References: ProPhy (Wang et al., 2025), L_coarse. Mean or sum, square or absolute value: the paper's copies differ, the
defaults are our choice.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from physexperts.ranks import Group, gathered, joined, world

__all__ = ["PairQueue", "Whole", "collect", "label_loss", "relative_alignment"]


@dataclass(frozen=True)
class Whole:
    """The rows of the whole batch (all micro-batches and ranks), without gradient, and which of them are this part's.

    The part's rows begin at `start`; `parts` is the number of parts over which gradients will be averaged.

    >>> whole = Whole(torch.eye(3), torch.eye(3), start=1, parts=3)
    >>> relative_alignment(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]]), whole=whole).item()
    0.0
    """

    outputs: Float[Tensor, "m d"]
    labels: Float[Tensor, "m l"]
    start: int
    parts: int


def collect(
    outputs: Sequence[Float[Tensor, "_ d"]], labels: Sequence[Float[Tensor, "_ l"]], *, group: Group = None
) -> list[Whole]:
    """Gather the outputs and labels of this rank's micro-batches and of all ranks; one `Whole` for each micro-batch.

    Every rank must give as many micro-batches; they may differ in length.

    >>> parts = collect([torch.randn(1, 3), torch.randn(2, 3)], [torch.ones(1, 2), torch.ones(2, 2)])
    >>> [(p.start, p.parts, len(p.outputs)) for p in parts]
    [(0, 2, 3), (1, 2, 3)]
    """
    if not outputs or len(outputs) != len(labels):
        raise ValueError(f"expected as many outputs as labels and at least one, got {len(outputs)} and {len(labels)}")
    for out, label in zip(outputs, labels, strict=True):
        _same_rows(out, label)
    every, start = gathered(torch.cat(list(outputs)), group)
    every_label, _ = gathered(torch.cat(list(labels)), group)
    wholes = []
    for part in outputs:
        wholes.append(Whole(every, every_label, start, len(outputs) * world(group)))
        start += len(part)
    return wholes


class PairQueue:
    """The last `size` outputs and labels, without gradient: partners for the videos of a small batch.

    >>> queue = PairQueue(2)
    >>> whole = queue(torch.randn(1, 3), torch.ones(1, 2)); len(whole.outputs)
    1
    >>> len(queue(torch.randn(1, 3), torch.ones(1, 2)).outputs)
    2
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"expected room for at least one row, got {size}")
        self._rows: deque[tuple[Tensor, Tensor]] = deque(maxlen=size)

    def __call__(self, outputs: Float[Tensor, "n d"], labels: Float[Tensor, "n l"]) -> Whole:
        """Return this batch in front of the queue's rows, then put it into the queue."""
        _same_rows(outputs, labels)
        past = list(self._rows)
        whole = Whole(
            torch.cat([outputs.detach(), *(row[None] for row, _ in past)]),
            torch.cat([labels.detach(), *(row[None] for _, row in past)]),
            start=0,
            parts=1,
        )
        self._rows.extend(zip(outputs.detach().clone(), labels.detach().clone(), strict=True))
        return whole


def relative_alignment(
    outputs: Float[Tensor, "n d"],
    labels: Float[Tensor, "n l"],
    *,
    whole: Whole | None = None,
    distance: Literal["square", "abs"] = "square",
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, ""]:
    """Compare cosines: mean over pairs i < j of |cos(rho_i, rho_j) - cos(q_i, q_j)|, squared by default.

    rho are the router's outputs (of a head of any width), q the label vectors. Rows with an empty label vector leave
    the pairs; fewer than two rows left give zero. With `whole` the pairs are those of the whole batch, the value is its
    loss on every part, and gradients averaged over the parts are its gradients.

    References: ProPhy (Wang et al., 2025), L_coarse; `reduction="sum"` is the paper's literal form.

    >>> q = torch.eye(3)
    >>> relative_alignment(5 * torch.eye(3), q).item(), relative_alignment(torch.ones(3, 4), q).item()
    (0.0, 1.0)
    """
    if distance not in ("square", "abs") or reduction not in ("mean", "sum"):
        raise ValueError(f"expected distance square or abs and reduction mean or sum, got {distance!r}, {reduction!r}")
    rho, q = _rows(outputs, labels, whole)
    valid = (q != 0).any(-1)
    pairs = (valid[:, None] & valid[None, :]).triu(1)
    # An empty row's cosine is nobody's business, and may be NaN: take it out before, not after.
    rho, q = F.normalize(rho.masked_fill(~valid[:, None], 0.0), dim=-1), F.normalize(q, dim=-1)
    gap = (rho @ rho.T - q @ q.T).masked_fill(~pairs, 0.0)
    total = (gap.square() if distance == "square" else gap.abs()).sum()
    return total if reduction == "sum" else total / pairs.sum().clamp(min=1)


def label_loss(
    logits: Float[Tensor, "n l"], labels: Float[Tensor, "n l"], *, whole: Whole | None = None
) -> Float[Tensor, ""]:
    """Binary cross-entropy of label logits, mean over rows that have a label and over labels (ProPhy's ablation, WISA).

    With `whole` it is the loss of the whole batch, as in `relative_alignment`.

    >>> round(label_loss(torch.zeros(2, 3), torch.tensor([[1.0, 0, 0], [0, 0, 0]])).item(), 4)
    0.6931
    """
    logits, labels = _rows(logits, labels, whole)
    valid = (labels != 0).any(-1, keepdim=True)
    terms = F.binary_cross_entropy_with_logits(logits.masked_fill(~valid, 0.0), labels, reduction="none")
    return (terms * valid).sum() / (valid.sum() * labels.shape[1]).clamp(min=1)


def _rows(outputs: Tensor, labels: Tensor, whole: Whole | None) -> tuple[Tensor, Tensor]:
    """All rows in at least fp32: those of this part with their gradient, the others as constants."""
    _same_rows(outputs, labels)
    dtype = torch.promote_types(outputs.dtype, torch.float32)
    if whole is None:
        return outputs.to(dtype), labels.to(dtype)
    stop = whole.start + len(outputs)
    if stop > len(whole.outputs) or whole.outputs.shape[1:] != outputs.shape[1:]:
        raise ValueError(
            f"expected rows {whole.start}..{stop} of a whole of shape {tuple(whole.outputs.shape)} for outputs of "
            f"shape {tuple(outputs.shape)}; collect the same outputs that the loss gets"
        )
    every = whole.outputs.to(dtype)
    mine = joined(every[whole.start : stop], outputs.to(dtype), whole.parts)
    return torch.cat([every[: whole.start], mine, every[stop:]]), whole.labels.to(dtype)


def _same_rows(outputs: Tensor, labels: Tensor) -> None:
    if outputs.ndim != 2 or labels.ndim != 2 or len(outputs) != len(labels):
        raise ValueError(
            "expected one row of outputs and one of labels a video, got "
            f"{tuple(outputs.shape)} and {tuple(labels.shape)}"
        )
