"""Is the routing healthy: running counts of who was asked, by whom.

Counts live on the router's device and `update` never waits for it; reading a figure does. A forward that activation
checkpointing repeats during the backward pass is not counted again. What surprises: `load` counts selections, so a soft
router, which selects everybody, is always balanced by it; look at `importance`, the share of the weights.
"""

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from physexperts.ranks import Group, summed
from physexperts.routing import Routing

__all__ = ["Health", "Limits", "RouterStats"]


@dataclass(frozen=True)
class Limits:
    """When a router is called unhealthy (our choice): a share of the weights that makes an expert dominant, a maximal
    violation (3: some expert has four times its share), an entropy at which the router no longer explores, the number
    of dead experts that is tolerated, and how many rows must have been seen before anything is said.

    >>> stats = RouterStats(experts=4)
    >>> stats.read(limits=Limits(rows=0, dead=4)).complaints  # nothing was routed: nothing to say
    ()
    """

    dominant: float = 0.5
    max_violation: float = 3.0
    entropy: float = 0.05
    dead: int = 0
    rows: int = 100


@dataclass(frozen=True)
class Health:
    """Figures of a router so far.

    `load` is each expert's share of all selections and `importance` its share of all weights (each sums to 1);
    `max_violation` = max(load) * E - 1, 0 at balance and E - 1 at collapse; `entropy` the mean entropy of a row's
    scores in units of log E (1 undecided, 0 certain); `dead` the experts that were never selected, `dominant` those
    with more than the limit's share of the weights; `label_expert[l, e]` the share of the rows with label l that
    selected e and `label_weight[l, e]` their mean weight of e (NaN for labels not seen); `pearson[l, m]` the
    correlation of the rows l and m of `label_weight` (NaN where a label was not seen or spreads evenly).

    >>> from physexperts import route
    >>> stats = RouterStats(experts=4)
    >>> stats.update(route(torch.tensor([[9.0, 0.0, 0.0, 0.0]] * 100), 1))
    >>> health = stats.read()
    >>> health.dead, health.dominant, health.max_violation, health.complaints[0]
    ((1, 2, 3), (0,), 3.0, '3 of 4 experts were never selected: [1, 2, 3]')
    """

    rows: int
    load: Float[Tensor, " E"]
    importance: Float[Tensor, " E"]
    max_violation: float
    entropy: float
    dead: tuple[int, ...]
    dominant: tuple[int, ...]
    label_expert: Float[Tensor, "L E"]
    label_weight: Float[Tensor, "L E"]
    pearson: Float[Tensor, "L L"]
    limits: Limits = Limits()

    @property
    def complaints(self) -> tuple[str, ...]:
        """What is wrong, in sentences; nothing before enough rows were seen."""
        limits, found = self.limits, []
        if self.rows < limits.rows or not self.load.sum():
            return ()
        if not self.importance.isfinite().all():
            found.append("weights that are not finite: the router saw NaN or infinite logits")
        if len(self.dead) > limits.dead:
            found.append(f"{len(self.dead)} of {len(self.load)} experts were never selected: {list(self.dead)}")
        if self.dominant and len(self.load) > 1:
            share = float(self.importance.max())
            found.append(f"expert {self.dominant[0]} has {share:.0%} of the weight (limit {limits.dominant:.0%})")
        if self.max_violation > limits.max_violation:
            found.append(f"maximal violation {self.max_violation:.2f} (limit {limits.max_violation})")
        if self.entropy < limits.entropy and len(self.load) > 1:
            found.append(f"entropy {self.entropy:.3f} of log E (limit {limits.entropy}): the router no longer explores")
        return tuple(found)

    def warn(self, name: str = "router") -> None:
        """Emit one UserWarning with all complaints, if there are any."""
        if self.complaints:
            warnings.warn(f"{name} after {self.rows} rows: " + "; ".join(self.complaints), UserWarning, stacklevel=2)


class RouterStats(nn.Module):
    """Running statistics of one router; the buffers are not saved with the model.

    >>> from physexperts import UniformRouter
    >>> stats = RouterStats(experts=4)
    >>> stats.update(UniformRouter(4)(torch.zeros(3, 2)))
    >>> health = stats.read()
    >>> health.rows, health.max_violation, health.entropy, health.dead
    (3, 0.0, 1.0, ())
    """

    selections: Int[Tensor, " E"]
    rows: Int[Tensor, ""]
    weights: Float[Tensor, " E"]
    entropy: Float[Tensor, ""]
    labelled: Float[Tensor, " L"]
    together: Float[Tensor, "L E"]
    together_weight: Float[Tensor, "L E"]

    def __init__(self, experts: int, labels: int | None = None) -> None:
        super().__init__()
        labels = experts if labels is None else labels
        self.experts = experts
        self.register_buffer("selections", torch.zeros(experts, dtype=torch.long), persistent=False)
        self.register_buffer("rows", torch.zeros((), dtype=torch.long), persistent=False)
        self.register_buffer("weights", torch.zeros(experts, dtype=torch.float64), persistent=False)
        self.register_buffer("entropy", torch.zeros((), dtype=torch.float64), persistent=False)
        self.register_buffer("labelled", torch.zeros(labels, dtype=torch.float64), persistent=False)
        self.register_buffer("together", torch.zeros(labels, experts, dtype=torch.float64), persistent=False)
        self.register_buffer("together_weight", torch.zeros(labels, experts, dtype=torch.float64), persistent=False)

    def _apply(self, fn, recurse: bool = True):
        """Move to a device, but keep counting in fp64: `model.bfloat16()` must not round a count of millions."""
        kept = {name: buffer.dtype for name, buffer in self._buffers.items() if buffer is not None}
        values = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, dtype in kept.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != dtype:
                self._buffers[name] = values[name].to(moved.device)
        return self

    @torch.no_grad()
    def update(self, routing: Routing, labels: Float[Tensor, "*b L"] | None = None) -> None:
        """Count one batch; masked rows count nowhere, nor does a forward repeated in a backward pass."""
        if _inside_backward():
            return
        if labels is not None and labels.shape != (*routing.mask.shape, len(self.labelled)):
            raise ValueError(
                f"expected labels of shape {(*routing.mask.shape, len(self.labelled))}, got {tuple(labels.shape)}; "
                f"RouterStats(experts, labels=...) says how many there are"
            )
        if routing.experts != self.experts:
            raise ValueError(f"expected a routing over {self.experts} experts, got one over {routing.experts}")
        selected = routing.selected.flatten(0, -2)
        dense = routing.dense().flatten(0, -2)
        _count(self.selections, selected.sum(0))
        _count(self.rows, routing.mask.sum())
        _count(self.weights, dense.double().sum(0))
        scores = routing.probs.double()
        _count(self.entropy, torch.special.entr(scores / scores.sum(-1, keepdim=True).clamp(min=1e-300)).sum())
        if labels is not None:
            present = labels.flatten(0, -2).double().masked_fill(~routing.mask.flatten()[:, None], 0.0)
            _count(self.labelled, present.sum(0))
            _count(self.together, present.T @ selected.double())
            _count(self.together_weight, present.T @ dense.double())

    def reset(self) -> None:
        """Start counting anew."""
        for buffer in self.buffers():
            buffer.zero_()

    def read(self, *, group: Group = None, limits: Limits | None = None) -> Health:
        """Read the figures, summed over the ranks of `group`; waits for the device, changes nothing."""
        limits = Limits() if limits is None else limits
        selections, weights, labelled = (
            summed(x, group).double().cpu() for x in (self.selections, self.weights, self.labelled)
        )
        together, together_weight = (summed(x, group).cpu() for x in (self.together, self.together_weight))
        rows, entropy = int(summed(self.rows, group)), float(summed(self.entropy, group))
        load, importance = selections / selections.sum().clamp(min=1), weights / weights.sum().clamp(min=1e-300)
        label_weight = together_weight / labelled[:, None]
        undecided = torch.log(torch.tensor(float(max(self.experts, 2)), dtype=torch.float64))
        return Health(
            rows=rows,
            load=load,
            importance=importance,
            max_violation=float(load.max() * self.experts - 1) if selections.sum() else 0.0,
            entropy=entropy / max(rows, 1) / float(undecided),
            dead=tuple(torch.nonzero(selections == 0).flatten().tolist()),
            dominant=tuple(torch.nonzero(importance > limits.dominant).flatten().tolist()),
            label_expert=together / labelled[:, None],
            label_weight=label_weight,
            pearson=_pearson(label_weight),
            limits=limits,
        )


def _pearson(rows: Float[Tensor, "L E"]) -> Float[Tensor, "L L"]:
    """Correlation between rows over the columns; NaN for a row that does not vary."""
    centred = rows - rows.mean(1, keepdim=True)
    size = centred.norm(dim=1, keepdim=True)
    unit = centred / size.where(size > 1e-12 * rows.norm(dim=1, keepdim=True), torch.nan)
    return (unit @ unit.T).clamp(-1, 1)


def _inside_backward() -> bool:
    """Is this forward run by the autograd engine, that is, repeated by activation checkpointing?"""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _add(total: Tensor, amount: Tensor) -> None:
    if torch._C._current_graph_task_id() == -1:
        total += amount


# An operator of its own, so that a compiled module also asks when it runs and not when it is traced.
_count = torch.library.custom_op(
    "physexperts::count", _add, mutates_args=("total",), schema="(Tensor(a!) total, Tensor amount) -> ()"
)


@_count.register_fake
def _(total: Tensor, amount: Tensor) -> None:
    return None
