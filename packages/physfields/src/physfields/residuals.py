"""The table of PILA's 29 residuals and the one call that evaluates a choice of them.

Eight experts (the mechanisms) with 4, 4, 4, 4, 4, 4, 2 and 3 terms; four families: 10 PDE anchors, 3 kinematic, 6
closures, 10 stabilisers. Fields are a mapping from slot names to (b, c, t, y, x): vectors (y, x), symmetric tensors
(yy, xx, yx). The mask is a weight (b, 1, t, y, x); half steps and faces take the mean of its two nodes, and a zero
weight removes every residual whose stencil touches that cell.

References: PILA (Wang et al., 2026), Tables 6 and 7; the formulas are our reading (`physfields.equations`).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from physfields import equations as eq
from physfields.derivatives import Derivatives
from physfields.equations import Balance, Field, Scales, State
from physfields.grid import AXES, Grid
from physfields.masks import erode_valid, face_mask, fill, masked_mean

__all__ = ["COMPONENTS", "EXPERTS", "FAMILIES", "TABLE", "Residual", "Scales", "Term", "evaluate"]

Reduction = Literal["mean_square", "charbonnier"]

FAMILIES = ("pde_anchor", "kinematic", "closure", "stabilizer")

COMPONENTS = {
    "displacement": 2,
    "velocity": 2,
    "pressure": 1,
    "density": 1,
    "temperature": 1,
    "phase": 1,
    "strain": 3,
    "stress": 3,
    "impulse": 2,
    "wave": 1,
}
"""Components that each slot must have."""


@dataclass(frozen=True)
class Term:
    """One row: its law, the slots it reads, the axes along which its node stencils reach, its source."""

    number: int
    expert: str
    name: str
    family: str
    reads: tuple[str, ...]
    axes: str
    reference: str
    function: Callable[[State], Balance]

    @property
    def key(self) -> str:
        """Its unique name, `expert.name`."""
        return f"{self.expert}.{self.name}"

    @property
    def equation(self) -> str:
        """The law in one line."""
        return (self.function.__doc__ or "").split("\n", 1)[0]


@dataclass(frozen=True)
class Residual:
    """`field`: the residual by place ("node", or the axis it sits half-way along); `loss` and `scale` of each sample.

    `scale` is the largest RMS among the residual's terms, without gradient: residual / scale is free of units.
    """

    field: Mapping[str, Field]
    loss: Float[Tensor, " b"]
    scale: Float[Tensor, " b"]


def _row(number: int, expert: str, family: str, reads: str, axes: str, reference: str, function: Callable) -> Term:
    return Term(number, expert, function.__name__, family, tuple(reads.split()), axes, reference, function)


_PDE, _KIN, _CLO, _STA = FAMILIES
_RIGID, _ELASTIC, _FLUID, _GAS = "rigid_body", "elastic", "fluid", "compressible_flow"
_PHASE, _HIT, _HEAT, _LIGHT = "phase_change", "collision", "thermal", "optical"
_LL6, _LL7 = "Landau & Lifshitz, Fluid Mechanics", "Landau & Lifshitz, Theory of Elasticity"
_TIKHONOV = "Tikhonov, 1963"

TABLE: tuple[Term, ...] = (
    _row(1, _RIGID, _KIN, "displacement velocity", "", "definition of velocity", eq.kinematic_consistency),
    _row(2, _RIGID, _STA, "strain velocity", "yx", f"{_LL7}, § 1", eq.low_strain),
    _row(3, _RIGID, _CLO, "stress strain", "", f"{_LL7}, § 4", eq.stress_strain_closure),
    _row(4, _RIGID, _STA, "velocity", "yx", f"{_LL7}, § 1", eq.rigid_motion),
    _row(5, _ELASTIC, _PDE, "displacement", "tyx", f"{_LL7}, § 22", eq.displacement_wave),
    _row(6, _ELASTIC, _PDE, "velocity", "tyx", f"{_LL7}, § 22", eq.velocity_wave),
    _row(7, _ELASTIC, _KIN, "displacement strain", "yx", f"{_LL7}, § 1", eq.deformation_compatibility),
    _row(8, _ELASTIC, _CLO, "stress strain", "", f"{_LL7}, § 4", eq.stress_strain_closure),
    _row(9, _FLUID, _PDE, "density velocity", "tyx", f"{_LL6}, § 1", eq.mass_continuity),
    _row(10, _FLUID, _PDE, "density velocity pressure", "tyx", f"{_LL6}, § 15", eq.momentum_balance),
    _row(11, _FLUID, _STA, "pressure", "", _TIKHONOV, eq.pressure_regularity),
    _row(12, _FLUID, _STA, "density", "", _TIKHONOV, eq.density_stability),
    _row(13, _GAS, _PDE, "density velocity", "tyx", f"{_LL6}, § 1", eq.mass_continuity),
    _row(14, _GAS, _PDE, "velocity pressure", "tyx", f"{_LL6}, § 64", eq.compression_dynamics),
    _row(15, _GAS, _CLO, "pressure density", "", f"{_LL6}, § 64", eq.pressure_density_closure),
    _row(16, _GAS, _STA, "velocity", "yx", _TIKHONOV, eq.gradient_regularity),
    _row(17, _PHASE, _PDE, "phase velocity", "tyx", "Osher & Sethian, 1988", eq.phase_transport),
    _row(18, _PHASE, _PDE, "temperature velocity phase", "tyx", "Voller & Prakash, 1987", eq.thermal_phase_coupling),
    _row(19, _PHASE, _CLO, "density phase", "", "mixture rule", eq.density_phase_closure),
    _row(20, _PHASE, _STA, "phase", "", _TIKHONOV, eq.support_regularity),
    _row(21, _HIT, _KIN, "displacement velocity", "", "definition of velocity", eq.kinematic_consistency),
    _row(22, _HIT, _CLO, "velocity impulse", "t", "Newton's second law", eq.impulse_response),
    _row(23, _HIT, _CLO, "displacement impulse", "yx", f"{_LL7}, § 9", eq.contact_compression),
    _row(24, _HIT, _STA, "impulse", "", _TIKHONOV, eq.impulse_propagation),
    _row(25, _HEAT, _PDE, "temperature velocity", "tyx", f"{_LL6}, § 50", eq.heat_transport),
    _row(26, _HEAT, _STA, "temperature", "", _TIKHONOV, eq.thermal_regularity),
    _row(27, _LIGHT, _PDE, "wave", "tyx", "Born & Wolf, Principles of Optics, § 1.2", eq.wave_propagation),
    _row(28, _LIGHT, _STA, "phase wave", "", "definition of support", eq.support_gating),
    _row(29, _LIGHT, _STA, "phase", "", _TIKHONOV, eq.support_smoothness),
)
"""The 29 terms in the paper's order."""

EXPERTS: tuple[str, ...] = tuple(dict.fromkeys(term.expert for term in TABLE))


def evaluate(
    fields: Mapping[str, Tensor],
    grid: Grid,
    experts: Iterable[str] | None = None,
    *,
    families: Iterable[str] | None = None,
    mask: Shaped[Tensor, "b 1 t y x"] | None = None,
    scales: Scales | None = None,
    kappa: str | float | int = "fit",
    relative: bool = False,
    reduction: Reduction = "mean_square",
) -> dict[str, Residual]:
    """The residuals of the chosen experts and families (all by default), by their key `expert.name`.

    The loss of a sample is the mask-weighted mean over its points of |r|^2 (the corner of a symmetric tensor counts
    twice), or of sqrt(r^2 + 1e-6) summed over components; several places add. `relative` divides r by its scale first.
    `kappa` is the closures' slope: fitted per sample without gradient, or fixed.

    >>> still = {"temperature": torch.zeros(1, 1, 4, 4, 4), "velocity": torch.zeros(1, 2, 4, 4, 4)}
    >>> evaluate(still, Grid(), ["thermal"])["thermal.heat_transport"].loss
    tensor([0.])
    """
    numbers, terms = scales or Scales(), _choose(experts, families)
    reads = dict.fromkeys(slot for term in terms for slot in term.reads)
    _check(fields, reads, mask, kappa, reduction)
    used = {slot: fields[slot] if mask is None else fill(fields[slot], mask) for slot in reads}
    bank = Derivatives(used, grid)

    @cache
    def weight(axes: str, place: str) -> Tensor | None:
        if mask is None:
            return None
        reach = [order // 2 if axis in axes else 0 for axis, order in zip(AXES, grid.order, strict=True)]
        whole = torch.where(erode_valid(mask, grid, (reach[0], reach[1], reach[2])), mask, 0)
        return whole if place == "node" else face_mask(whole, place, grid)

    @cache
    def balance(function: Callable[[State], Balance], axes: str) -> Balance:
        return function(State(bank, partial(weight, axes), partial(weight, place="node"), numbers, kappa))

    def residual(term: Term) -> Residual:
        weigh = partial(weight, term.axes)
        return _reduce(balance(term.function, term.axes), weigh, numbers, relative, reduction)

    return {term.key: residual(term) for term in terms}


def _reduce(
    balance: Balance, weight: Callable[[str], Tensor | None], numbers: Scales, relative: bool, reduction: str
) -> Residual:
    def mean(values: Tensor, place: str) -> Tensor:
        per_component = masked_mean(values, weight(place))
        if balance.symmetric and values.shape[1] == 3:  # |s|^2 = yy^2 + xx^2 + 2 yx^2
            per_component = per_component * per_component.new_tensor([1.0, 1.0, 2.0])
        return per_component.sum(dim=1)

    sizes = [mean(value.detach().square(), place).sqrt() for place, value in balance.terms]
    scale = torch.stack(sizes).amax(dim=0)
    divisor = scale.clamp(min=numbers.smallest_scale)[:, None, None, None, None] if relative else 1.0
    losses = []
    for place, r in balance.field.items():
        squared = (r / divisor).square()
        losses.append(mean(squared if reduction == "mean_square" else (squared + numbers.charbonnier).sqrt(), place))
    return Residual(balance.field, torch.stack(losses).sum(dim=0), scale)


def _choose(experts: Iterable[str] | None, families: Iterable[str] | None) -> list[Term]:
    chosen_experts = set(EXPERTS if experts is None else experts)
    chosen_families = set(FAMILIES if families is None else families)
    if not chosen_experts <= set(EXPERTS) or not chosen_families <= set(FAMILIES):
        raise ValueError(
            f"evaluate: expected experts out of {EXPERTS} and families out of {FAMILIES}, "
            f"got {sorted(chosen_experts - set(EXPERTS) | chosen_families - set(FAMILIES))}."
        )
    return [term for term in TABLE if term.expert in chosen_experts and term.family in chosen_families]


def _check(
    fields: Mapping[str, Tensor], reads: Iterable[str], mask: Tensor | None, kappa: str | float | int, reduction: str
) -> None:
    for slot in reads:
        if slot not in fields:
            raise ValueError(f"evaluate: the chosen residuals read {slot!r}, got only {sorted(fields)}; add the field.")
        f = fields[slot]
        if f.ndim != 5 or f.shape[1] != COMPONENTS[slot]:
            expected = f"(b, {COMPONENTS[slot]}, t, y, x)"
            raise ValueError(f"evaluate: expected {slot} of shape {expected}, got {tuple(f.shape)}.")
        if mask is not None and mask.shape != (f.shape[0], 1, *f.shape[2:]):
            raise ValueError(
                f"evaluate: expected a mask of shape {(f.shape[0], 1, *f.shape[2:])}, got {tuple(mask.shape)}."
            )
    if isinstance(kappa, str) and kappa != "fit":
        raise ValueError(f'evaluate: expected kappa "fit" or a number, got {kappa!r}.')
    if reduction not in ("mean_square", "charbonnier"):
        raise ValueError(f"evaluate: expected reduction mean_square or charbonnier, got {reduction!r}.")
