"""The table of residuals and the one call that evaluates a choice of them.

`TABLE` holds PILA's 29 terms in eight mechanisms (`PILA`), then the general laws that people expect (`GENERAL`):
Navier-Stokes, Euler, shallow water, Burgers, heat, advection-diffusion, waves, elasticity, Maxwell, Cahn-Hilliard,
Stefan. Four families: PDE anchors, kinematic, closures, stabilisers.

Fields are a mapping from slot names to (b, c, t, *space): vectors (y, x) or (z, y, x), symmetric tensors (yy, xx, yx).
The mask is a weight (b, 1, t, *space); half steps and faces take the mean of its two nodes, and a zero weight removes
every residual whose stencil touches that cell.

References: PILA (Wang et al., 2026), Tables 6 and 7; the formulas are our reading (`physfields.equations`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from physfields import equations as eq
from physfields import flows, transfer, waves
from physfields.balance import Balance, Constants, Scales, State
from physfields.derivatives import Derivatives
from physfields.fields import Kind, as_field
from physfields.fields import components as count_of
from physfields.grid import Grid
from physfields.masks import NodeWeights, fill
from physfields.reduction import Residual, reduce_all
from physfields.terms import Term

__all__ = [
    "CATEGORIES",
    "COMPONENTS",
    "EXPERTS",
    "FAMILIES",
    "GENERAL",
    "KINDS",
    "PILA",
    "TABLE",
    "Constants",
    "Residual",
    "Scales",
    "Term",
    "describe",
    "evaluate",
]

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
"""Components that each of PILA's slots has on a plane."""

KINDS: dict[str, Kind] = {
    "displacement": "vector",
    "velocity": "vector",
    "pressure": "scalar",
    "density": "scalar",
    "temperature": "scalar",
    "phase": "scalar",
    "strain": "symmetric",
    "stress": "symmetric",
    "impulse": "vector",
    "wave": "scalar",
    "force": "vector",
    "source": "any",
    "height": "scalar",
    "bed": "scalar",
    "concentration": "any",
    "electric": "vector",
    "magnetic": "scalar",
    "level_set": "scalar",
}
"""What kind of field each slot is; "any" has as many components as the user gives."""


def _row(
    number: int, category: str, family: str, reads: str, reach: str, units: str, reference: str, function: Callable
) -> Term:
    about = {"reads": reads, "units": units, "reference": reference}
    return Term.of(function, category, family=family, reach=reach, number=number, **about)


_PDE, _KIN, _CLO, _STA = FAMILIES
_RIGID, _ELASTIC, _FLUID, _GAS = "rigid_body", "elastic", "fluid", "compressible_flow"
_PHASE, _HIT, _HEAT, _LIGHT = "phase_change", "collision", "thermal", "optical"
_LL6, _LL7 = "Landau & Lifshitz, Fluid Mechanics", "Landau & Lifshitz, Theory of Elasticity"
_TIKHONOV = "Tikhonov, 1963"

PILA: tuple[Term, ...] = (
    _row(1, _RIGID, _KIN, "displacement velocity", "", "velocity", "definition of velocity", eq.kinematic_consistency),
    _row(2, _RIGID, _STA, "strain velocity", "s", "1 / time", f"{_LL7}, § 1", eq.low_strain),
    _row(3, _RIGID, _CLO, "stress strain", "", "stress", f"{_LL7}, § 4", eq.stress_strain_closure),
    _row(4, _RIGID, _STA, "velocity", "s", "1 / time", f"{_LL7}, § 1", eq.rigid_motion),
    _row(5, _ELASTIC, _PDE, "displacement", "ts", "length / time^2", f"{_LL7}, § 22", eq.displacement_wave),
    _row(6, _ELASTIC, _PDE, "velocity", "ts", "length / time^3", f"{_LL7}, § 22", eq.velocity_wave),
    _row(7, _ELASTIC, _KIN, "displacement strain", "s", "1 / time", f"{_LL7}, § 1", eq.deformation_compatibility),
    _row(8, _ELASTIC, _CLO, "stress strain", "", "stress", f"{_LL7}, § 4", eq.stress_strain_closure),
    _row(9, _FLUID, _PDE, "density velocity", "ts", "density / time", f"{_LL6}, § 1", eq.mass_continuity),
    _row(
        10, _FLUID, _PDE, "density velocity pressure", "ts", "pressure / length", f"{_LL6}, § 15", eq.momentum_balance
    ),
    _row(11, _FLUID, _STA, "pressure", "", "pressure / length", _TIKHONOV, eq.pressure_regularity),
    _row(12, _FLUID, _STA, "density", "", "density, density / length", _TIKHONOV, eq.density_stability),
    _row(13, _GAS, _PDE, "density velocity", "ts", "density / time", f"{_LL6}, § 1", eq.mass_continuity),
    _row(14, _GAS, _PDE, "velocity pressure", "ts", "1 / time^2", f"{_LL6}, § 64", eq.compression_dynamics),
    _row(15, _GAS, _CLO, "pressure density", "", "pressure", f"{_LL6}, § 64", eq.pressure_density_closure),
    _row(16, _GAS, _STA, "velocity", "s", "1 / (length time)", _TIKHONOV, eq.gradient_regularity),
    _row(17, _PHASE, _PDE, "phase velocity", "ts", "1 / time", "Osher & Sethian, 1988", eq.phase_transport),
    _row(
        18,
        _PHASE,
        _PDE,
        "temperature velocity phase",
        "ts",
        "temperature / time",
        "Voller & Prakash, 1987",
        eq.thermal_phase_coupling,
    ),
    _row(19, _PHASE, _CLO, "density phase", "", "density", "mixture rule", eq.density_phase_closure),
    _row(20, _PHASE, _STA, "phase", "", "1 / length", _TIKHONOV, eq.support_regularity),
    _row(21, _HIT, _KIN, "displacement velocity", "", "velocity", "definition of velocity", eq.kinematic_consistency),
    _row(22, _HIT, _CLO, "velocity impulse", "t", "velocity / time", "Newton's second law", eq.impulse_response),
    _row(23, _HIT, _CLO, "displacement impulse", "s", "1", f"{_LL7}, § 9", eq.contact_compression),
    _row(24, _HIT, _STA, "impulse", "", "impulse / length", _TIKHONOV, eq.impulse_propagation),
    _row(25, _HEAT, _PDE, "temperature velocity", "ts", "temperature / time", f"{_LL6}, § 50", eq.heat_transport),
    _row(26, _HEAT, _STA, "temperature", "", "temperature / length", _TIKHONOV, eq.thermal_regularity),
    _row(
        27, _LIGHT, _PDE, "wave", "ts", "wave / time^2", "Born & Wolf, Principles of Optics, § 1.2", eq.wave_propagation
    ),
    _row(28, _LIGHT, _STA, "phase wave", "", "wave", "definition of support", eq.support_gating),
    _row(29, _LIGHT, _STA, "phase", "", "1 / length", _TIKHONOV, eq.support_smoothness),
)
"""PILA's 29 terms in the paper's order."""

_NS, _CNS, _WATER, _EM = "navier_stokes", "compressible_navier_stokes", "shallow_water", "maxwell_te"
_FORCE, _ENERGY = "pressure / length", "pressure / time"

_LAWS = (
    (_NS, "velocity", "s", "1 / time", f"{_LL6}, § 10", flows.incompressibility),
    (_NS, "velocity pressure | force", "ts", _FORCE, f"{_LL6}, § 15", flows.incompressible_momentum),
    (_NS, "velocity", "ts", "1 / time^2", f"{_LL6}, § 15", flows.vorticity_transport),
    (_CNS, "density velocity", "ts", "density / time", f"{_LL6}, § 1", flows.mass_conservation),
    (_CNS, "density velocity pressure | force", "ts", _FORCE, f"{_LL6}, § 15", flows.compressible_momentum),
    (_CNS, "density velocity pressure", "ts", _ENERGY, f"{_LL6}, § 49", flows.compressible_energy),
    ("euler", "density velocity", "ts", "density / time", f"{_LL6}, § 1", flows.mass_conservation),
    ("euler", "density velocity pressure", "ts", _FORCE, f"{_LL6}, § 7", flows.euler_momentum),
    ("euler", "density velocity pressure", "ts", _ENERGY, f"{_LL6}, § 6", flows.euler_energy),
    (_WATER, "height velocity", "ts", "length / time", f"{_LL6}, § 108", flows.shallow_mass),
    (_WATER, "height velocity | bed", "ts", "length / time^2", f"{_LL6}, § 108", flows.shallow_momentum),
    ("burgers", "velocity | force", "ts", "length / time^2", "Burgers, 1948", flows.burgers_momentum),
    ("heat", "temperature | source", "ts", "temperature / time", f"{_LL6}, § 50", transfer.conduction),
    (
        "advection_diffusion",
        "concentration velocity | source",
        "ts",
        "concentration / time",
        f"{_LL6}, § 59",
        transfer.advection_diffusion,
    ),
    ("cahn_hilliard", "concentration", "ts", "1 / time", "Cahn & Hilliard, 1958", transfer.separation),
    ("stefan", "temperature level_set", "ts", "temperature / time", "Stefan, 1891", transfer.stefan_conduction),
    (
        "stefan",
        "temperature level_set",
        "ts",
        "temperature length / time",
        "Stefan, 1891",
        transfer.stefan_front,
    ),
    ("wave", "wave | source", "ts", "wave / time^2", "d'Alembert, 1747", waves.propagation),
    ("linear_elasticity", "displacement | force", "ts", "pressure / length", f"{_LL7}, § 22", waves.elastic_momentum),
    ("linear_elasticity", "stress displacement", "s", "stress", f"{_LL7}, § 4", waves.hooke),
    (_EM, "magnetic electric", "ts", "electric / length", "Jackson, Classical Electrodynamics, § 6.1", waves.faraday),
    (_EM, "magnetic electric", "ts", "magnetic / length", "Jackson, Classical Electrodynamics, § 6.1", waves.ampere),
    (_EM, "electric", "s", "electric / length", "Jackson, Classical Electrodynamics, § 6.1", waves.gauss),
)

GENERAL: tuple[Term, ...] = tuple(
    _row(30 + i, category, _CLO if function is waves.hooke else _PDE, reads, reach, units, reference, function)
    for i, (category, reads, reach, units, reference, function) in enumerate(_LAWS)
)
"""The general laws, with `Constants`."""

TABLE: tuple[Term, ...] = PILA + GENERAL
"""Every residual: PILA's 29, then the general laws."""

EXPERTS: tuple[str, ...] = tuple(dict.fromkeys(term.category for term in PILA))
CATEGORIES: tuple[str, ...] = tuple(dict.fromkeys(term.category for term in TABLE))


def describe(
    categories: Iterable[str] | None = None,
    *,
    families: Iterable[str] | None = None,
    table: Sequence[Term] = TABLE,
) -> str:
    """The chosen rows as text, one a line: number, key, family, units, slots, law (all rows by default).

    >>> print(describe(["thermal"]))
    25  thermal.heat_transport      pde_anchor  temperature / time    temperature velocity  D_t T + v . grad T + (T + T_ref) div v - kappa lap T = 0.
    26  thermal.thermal_regularity  stabilizer  temperature / length  temperature           Face differences of T are small.
    """  # noqa: E501
    chosen = _choose({term.category for term in table} if categories is None else categories, families, table)
    rows = [
        (
            str(term.number),
            term.key,
            term.family,
            term.units,
            " ".join(term.reads + tuple(f"[{slot}]" for slot in term.optional)),
            term.equation,
        )
        for term in chosen
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(5)] if rows else []
    return "\n".join("  ".join([*map(str.ljust, row, widths), row[5]]) for row in rows)


def evaluate(
    fields: Mapping[str, Tensor],
    grid: Grid,
    categories: Iterable[str] | None = None,
    *,
    families: Iterable[str] | None = None,
    weights: Mapping[str, float | int] | None = None,
    mask: Shaped[Tensor, "b 1 *grid"] | None = None,
    scales: Scales | None = None,
    constants: Constants | None = None,
    kappa: str | float | int = "fit",
    relative: bool = False,
    reduction: Reduction = "mean_square",
    stacked: bool | None = None,
    table: Sequence[Term] = TABLE,
) -> dict[str, Residual]:
    """The residuals of the chosen categories and families (PILA's eight and all four by default), by `category.name`.

    The loss of a sample is the mask-weighted mean over its points of |r|^2 (corners of a symmetric tensor count twice),
    or of sqrt(r^2 + 1e-6) summed over components; several places add. `relative` divides r by its scale first.
    `weights` multiply losses, by key, category or family (their product; 1 where nothing is said). `kappa` is the
    closures' slope: fitted per sample without gradient, or fixed. PILA's terms take their numbers from `scales`, the
    general laws from `constants`, whose tensors carry gradients. `stacked` differentiates all fields in one piece:
    fewer launches, more arithmetic; by default on a GPU alone (`Derivatives`). `table` is chosen from: `(*TABLE, *own)`
    adds laws of one's own (`Term.of`).

    >>> still = {"temperature": torch.zeros(1, 1, 4, 4, 4), "velocity": torch.zeros(1, 2, 4, 4, 4)}
    >>> evaluate(still, Grid(), ["thermal"])["thermal.heat_transport"].loss
    tensor([0.])
    """
    numbers, terms = scales or Scales(), _choose(EXPERTS if categories is None else categories, families, table)
    reads = dict.fromkeys(slot for term in terms for slot in term.reads)
    reads |= dict.fromkeys(slot for term in terms for slot in term.optional if slot in fields)
    used = _checked(fields, reads, grid, mask, kappa, reduction, weights, table)
    if not terms:
        return {}
    bank = Derivatives(used if mask is None else _filled(used, mask), grid, stacked=stacked)
    shared: dict[str, object] = {}

    weight = NodeWeights(mask, grid)
    made: dict[tuple[Callable[[State], Balance], tuple[str, ...]], Balance] = {}

    def balance(function: Callable[[State], Balance], axes: tuple[str, ...]) -> Balance:
        if (function, axes) not in made:  # a dict and no functools.cache, which compilers cannot trace
            sound, own = partial(weight, place="node"), partial(weight.mean, axes=axes, place="node")
            reach = axes if mask is not None else ()
            state = State(bank, own, sound, numbers, kappa, constants or Constants(), shared, reach)
            made[function, axes] = function(state)
        return made[function, axes]

    balances = [balance(term.function, term.axes(grid)) for term in terms]
    reaches = [term.axes(grid) if mask is not None else () for term in terms]
    factors = [_factor(term, weights or {}) for term in terms]
    divisor = numbers.smallest_scale if relative else None
    eps = numbers.charbonnier if reduction == "charbonnier" else None
    found = reduce_all(balances, reaches, factors, grid, weight.mean, divisor=divisor, charbonnier=eps)
    return {term.key: residual for term, residual in zip(terms, found, strict=True)}


def _filled(fields: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Every field with 0 where the mask is 0 (density with 1: laws divide by it), in one piece: launches count."""
    if "density" in fields:
        rest = {slot: f for slot, f in fields.items() if slot != "density"}
        return {"density": fill(fields["density"], mask, 1.0), **(_filled(rest, mask) if rest else {})}
    first = next(iter(fields.values()))
    if any(f.dtype != first.dtype or f.shape[0] != first.shape[0] for f in fields.values()):
        return {slot: fill(f, mask) for slot, f in fields.items()}
    parts = fill(torch.cat(list(fields.values()), dim=1), mask).split([f.shape[1] for f in fields.values()], dim=1)
    return dict(zip(fields, parts, strict=True))


def _factor(term: Term, weights: Mapping[str, float | int]) -> float:
    return float(weights.get(term.key, 1)) * float(weights.get(term.category, 1)) * float(weights.get(term.family, 1))


def _choose(categories: Iterable[str], families: Iterable[str] | None, table: Sequence[Term]) -> list[Term]:
    for given in (categories, families):
        if isinstance(given, str):
            raise ValueError(f"residuals: expected a list of names, got the string {given!r}; write [{given!r}].")
    chosen, kinds = set(categories), set(FAMILIES if families is None else families)
    known = tuple(dict.fromkeys(term.category for term in table))
    if not chosen <= set(known) or not kinds <= set(FAMILIES):
        raise ValueError(
            f"residuals: expected categories out of {known} and families out of {FAMILIES}, "
            f"got {sorted(chosen - set(known) | kinds - set(FAMILIES))}."
        )
    return [term for term in table if term.category in chosen and term.family in kinds]


def _checked(
    fields: Mapping[str, Tensor],
    reads: Iterable[str],
    grid: Grid,
    mask: Tensor | None,
    kappa: str | float | int,
    reduction: str,
    weights: Mapping[str, float | int] | None,
    table: Sequence[Term],
) -> dict[str, Tensor]:
    """The fields that are read, lifted to at least fp32."""
    used = {}
    for slot in reads:
        if slot not in fields:
            raise ValueError(f"evaluate: the chosen residuals read {slot!r}, got only {sorted(fields)}; add the field.")
        f = used[slot] = as_field(
            fields[slot], count_of(KINDS.get(slot, "any"), grid), f"evaluate: {slot}", axes=grid.axes
        )
        if mask is not None and mask.shape != (f.shape[0], 1, *f.shape[2:]):
            raise ValueError(
                f"evaluate: expected a mask of shape {(f.shape[0], 1, *f.shape[2:])}, got {tuple(mask.shape)}."
            )
    if isinstance(kappa, str) and kappa != "fit":
        raise ValueError(f'evaluate: expected kappa "fit" or a number, got {kappa!r}.')
    if reduction not in ("mean_square", "charbonnier"):
        raise ValueError(f"evaluate: expected reduction mean_square or charbonnier, got {reduction!r}.")
    known = {name for term in table for name in (term.key, term.category, term.family)}
    if strangers := sorted(set(weights or {}) - known):
        raise ValueError(f"evaluate: expected weights by a key, category or family of the table, got {strangers}.")
    return used
