"""Manufactured solutions: SymPy differentiates smooth fields by each law's own formula, and what is left over is the
forcing that the residual must show, at its order. A wrong factor, sign, index or a missing term anywhere is no forcing.
"""

import math
from functools import cache

import pytest
import sympy as sp
import torch

import physfields as pf
from physfields.fields import components, symmetric_pairs
from physfields.residuals import GENERAL, KINDS, PILA, evaluate

D = torch.float64
T, Z, Y, X = sp.symbols("t z y x", real=True)
AXES = {"plane": (T, Y, X), "space": (T, Z, Y, X)}
POSITIVE = ("density", "height", "pressure", "temperature", "level_set", "phase")
CONSTANTS = pf.Constants(
    density=1.7, viscosity=0.3, bulk_viscosity=0.45, conductivity=0.6, heat_ratio=1.3, gravity=2.1, diffusivity=0.4,
    wave_speed=1.2, lame_lambda=1.4, lame_mu=0.9, permittivity=1.3, permeability=0.7, mobility=0.8, interface=0.5,
    latent_heat=1.9, front_band=1e9,
)  # fmt: skip
SCALES = pf.Scales(
    viscosity=0.35, displacement_wave_speed=1.1, velocity_wave_speed=0.9, wave_speed=1.2, compression=0.8,
    diffusivity=0.45, latent_heat=1.6, reference_temperature=0.7, density_floor=5.0,
)  # fmt: skip
KAPPA = 0.8
C, S = CONSTANTS, SCALES


class Symbols:
    """Fields of a plane or of space as expressions: `f.velocity` is a list, `f.density` one expression."""

    def __init__(self, where):
        self.axes, self.space = AXES[where], AXES[where][1:]

    def __getattr__(self, slot):
        n = len(self.space)
        count = {"vector": n, "symmetric": n * (n + 1) // 2}.get(KINDS[slot], 1)
        parts = [self.part(slot, c) for c in range(count)]
        return parts if count > 1 else parts[0]

    def part(self, slot, c):
        """Offset + amplitude sin(k . x + phase), another wave for every component of every slot."""
        seed = list(KINDS).index(slot) * 7 + c * 3
        k = [
            sp.Rational(6 + (seed * (3 + a) + 2 * a) % 7, 10) * (-1) ** ((seed + a) % 2) for a in range(len(self.axes))
        ]
        phase = sum(w * axis for w, axis in zip(k, self.axes, strict=True)) + sp.Rational(seed % 11, 5)
        wave = sp.Rational(4 + seed % 5, 10) * sp.sin(phase)
        if slot == "level_set":  # a front needs a slope
            return 2 + sum(self.axes[1:]) / 2 + wave / 5
        return 2 + wave if slot in POSITIVE else wave


def grad(f, a):
    return [sp.diff(f, axis) for axis in a.space]


def div(u, a):
    return sum(sp.diff(c, axis) for c, axis in zip(u, a.space, strict=True))


def lap(f, a):
    return sum(sp.diff(f, axis, 2) for axis in a.space)


def along(u, f, a):
    return sum(c * sp.diff(f, axis) for c, axis in zip(u, a.space, strict=True))


def sym_grad(u, a):
    return [(sp.diff(u[i], a.space[j]) + sp.diff(u[j], a.space[i])) / 2 for i, j in symmetric_pairs(len(a.space))]


def momentum(a, rho, *forces):
    v, n = a.velocity, len(a.space)
    return [rho * (sp.diff(v[i], T) + along(v, v[i], a)) + sum(f[i] for f in forces) for i in range(n)]


def viscous(u, factor, a):
    return [-factor * lap(c, a) for c in u]


def squeezed(u, factor, a):
    return [-factor * c for c in grad(div(u, a), a)]


def vorticity(a):
    v = a.velocity
    return sp.diff(v[0], X) - sp.diff(v[1], Y)


def energy(a):
    v, p, rho = a.velocity, a.pressure, a.density
    strain = sym_grad(v, a)
    double = [1 if i == j else 2 for i, j in symmetric_pairs(len(a.space))]
    friction = 2 * C.viscosity * sum(w * s**2 for w, s in zip(double, strain, strict=True))
    friction += (C.bulk_viscosity - sp.Rational(2, 3) * C.viscosity) * div(v, a) ** 2
    gain = C.conductivity * lap(p / rho, a) + friction
    return sp.diff(p, T) + along(v, p, a) + C.heat_ratio * p * div(v, a) - (C.heat_ratio - 1) * gain


def euler_energy(a):
    v, p = a.velocity, a.pressure
    e = p / (C.heat_ratio - 1) + a.density * sum(c**2 for c in v) / 2
    return sp.diff(e, T) + div([(e + p) * c for c in v], a)


def mass(a):
    return sp.diff(a.density, T) + div([a.density * c for c in a.velocity], a)


def hooke(a):
    d, strain = a.displacement, sym_grad(a.displacement, a)
    return [
        s - C.lame_lambda * div(d, a) * int(i == j) - 2 * C.lame_mu * e
        for s, e, (i, j) in zip(a.stress, strain, symmetric_pairs(len(a.space)), strict=True)
    ]


def stefan_front(a):
    s, temperature = a.level_set, a.temperature
    steep = sp.sqrt(sum(c**2 for c in grad(s, a)))
    here = sum(p * q for p, q in zip(grad(temperature, a), grad(s, a), strict=True)) / steep
    return C.latent_heat * sp.diff(s, T) / steep - C.diffusivity * (2 * temperature * steep / s - here)


def conservative_momentum(a):
    v, rho = a.velocity, a.density
    return [
        sp.diff(rho * c, T) + div([rho * c * w for w in v], a) + sp.diff(a.pressure, axis)
        for c, axis in zip(v, a.space, strict=True)
    ]


LAWS = {  # key: what the law leaves over; the optional slot it is given; whether it holds in space too
    "navier_stokes.incompressibility": (lambda a: div(a.velocity, a), None, True),
    "navier_stokes.incompressible_momentum": (
        lambda a: momentum(a, C.density, grad(a.pressure, a), viscous(a.velocity, C.viscosity, a)),
        "force",
        True,
    ),
    "navier_stokes.vorticity_transport": (
        lambda a: sp.diff(vorticity(a), T)
        + along(a.velocity, vorticity(a), a)
        - C.viscosity / C.density * lap(vorticity(a), a),
        None,
        False,
    ),
    "compressible_navier_stokes.mass_conservation": (mass, None, True),
    "compressible_navier_stokes.compressible_momentum": (
        lambda a: momentum(
            a,
            a.density,
            grad(a.pressure, a),
            viscous(a.velocity, C.viscosity, a),
            squeezed(a.velocity, C.bulk_viscosity + C.viscosity / 3, a),
        ),
        "force",
        True,
    ),
    "compressible_navier_stokes.compressible_energy": (energy, None, True),
    "euler.mass_conservation": (mass, None, True),
    "euler.euler_momentum": (conservative_momentum, None, True),
    "euler.euler_energy": (euler_energy, None, True),
    "shallow_water.shallow_mass": (
        lambda a: sp.diff(a.height, T) + div([a.height * c for c in a.velocity], a),
        None,
        True,
    ),
    "shallow_water.shallow_momentum": (
        lambda a: momentum(a, 1, [C.gravity * c for c in grad(a.height + a.bed, a)]),
        "bed",
        True,
    ),
    "burgers.burgers_momentum": (lambda a: momentum(a, 1, viscous(a.velocity, C.viscosity, a)), "force", True),
    "heat.conduction": (lambda a: sp.diff(a.temperature, T) - C.diffusivity * lap(a.temperature, a), "source", True),
    "advection_diffusion.advection_diffusion": (
        lambda a: sp.diff(a.concentration, T)
        + div([a.concentration * c for c in a.velocity], a)
        - C.diffusivity * lap(a.concentration, a),
        "source",
        True,
    ),
    "cahn_hilliard.separation": (
        lambda a: sp.diff(a.concentration, T)
        - C.mobility * lap(a.concentration**3 - a.concentration - C.interface * lap(a.concentration, a), a),
        None,
        True,
    ),
    "stefan.stefan_conduction": (
        lambda a: sp.diff(a.temperature, T) - C.diffusivity * lap(a.temperature, a),
        None,
        True,
    ),
    "stefan.stefan_front": (stefan_front, None, True),
    "wave.propagation": (lambda a: sp.diff(a.wave, T, 2) - C.wave_speed**2 * lap(a.wave, a), "source", True),
    "linear_elasticity.elastic_momentum": (
        lambda a: [
            C.density * sp.diff(c, T, 2) + p + s
            for c, p, s in zip(
                a.displacement,
                squeezed(a.displacement, C.lame_lambda + C.lame_mu, a),
                viscous(a.displacement, C.lame_mu, a),
                strict=True,
            )
        ],
        "force",
        True,
    ),
    "linear_elasticity.hooke": (hooke, None, True),
    "maxwell_te.faraday": (
        lambda a: C.permeability * sp.diff(a.magnetic, T) + sp.diff(a.electric[0], X) - sp.diff(a.electric[1], Y),
        None,
        False,
    ),
    "maxwell_te.ampere": (
        lambda a: [
            C.permittivity * sp.diff(a.electric[0], T) + sp.diff(a.magnetic, X),
            C.permittivity * sp.diff(a.electric[1], T) - sp.diff(a.magnetic, Y),
        ],
        None,
        False,
    ),
    "maxwell_te.gauss": (lambda a: div(a.electric, a), None, False),
}  # fmt: skip


def heat(a):
    v, temperature = a.velocity, a.temperature
    carried = along(v, temperature, a) + (temperature + S.reference_temperature) * div(v, a)
    return sp.diff(temperature, T) + carried - S.diffusivity * lap(temperature, a)


def faces(f):
    """Differences towards each spatial axis, at that axis's faces."""
    return lambda a: {name: [sp.diff(c, axis) for c in (f(a) if isinstance(f(a), list) else [f(a)])]
                      for name, axis in (("y", Y), ("x", X))}  # fmt: skip


def minus(kappa, first, second):
    return [p - kappa * q for p, q in zip(first, second, strict=True)]


def kinematic(a):
    return {"t": minus(1, [sp.diff(c, T) for c in a.displacement], a.velocity)}


PAPER = {  # PILA's terms: node expressions, or expressions by place; centred fields are compared below
    "rigid_body.kinematic_consistency": kinematic,
    "rigid_body.low_strain": lambda a: a.strain,
    "rigid_body.stress_strain_closure": lambda a: minus(KAPPA, a.stress, a.strain),
    "rigid_body.rigid_motion": lambda a: sym_grad(a.velocity, a),
    "elastic.displacement_wave": lambda a: [
        sp.diff(c, T, 2) - S.displacement_wave_speed**2 * lap(c, a) for c in a.displacement
    ],
    "elastic.velocity_wave": lambda a: [sp.diff(c, T, 2) - S.velocity_wave_speed**2 * lap(c, a) for c in a.velocity],
    "elastic.deformation_compatibility": lambda a: {
        "t": minus(1, sym_grad([sp.diff(c, T) for c in a.displacement], a), a.strain)
    },
    "elastic.stress_strain_closure": lambda a: minus(KAPPA, a.stress, a.strain),
    "fluid.mass_continuity": mass,
    "fluid.momentum_balance": lambda a: momentum(
        a, a.density, grad(a.pressure, a), viscous(a.velocity, S.viscosity, a)
    ),
    "fluid.pressure_regularity": faces(lambda a: a.pressure),
    "fluid.density_stability": lambda a: {"node": [S.density_floor - a.density], **faces(lambda b: b.density)(a)},
    "compressible_flow.mass_continuity": mass,
    "compressible_flow.compression_dynamics": lambda a: sp.diff(div(a.velocity, a), T)
    + S.compression * lap(a.pressure, a),
    "compressible_flow.pressure_density_closure": lambda a: a.pressure - KAPPA * a.density,
    "compressible_flow.gradient_regularity": faces(lambda a: div(a.velocity, a)),
    "phase_change.phase_transport": lambda a: sp.diff(a.phase, T) + along(a.velocity, a.phase, a),
    "phase_change.thermal_phase_coupling": lambda a: heat(a) + S.latent_heat * sp.diff(a.phase, T),
    "phase_change.density_phase_closure": lambda a: a.density - KAPPA * a.phase,
    "phase_change.support_regularity": faces(lambda a: a.phase),
    "collision.kinematic_consistency": kinematic,
    "collision.impulse_response": lambda a: minus(KAPPA, [sp.diff(c, T) for c in a.velocity], a.impulse),
    "collision.contact_compression": lambda a: sp.Max(-div(a.displacement, a), 0)
    - KAPPA * sp.sqrt(a.impulse[0] ** 2 + a.impulse[1] ** 2),
    "collision.impulse_propagation": faces(lambda a: a.impulse),
    "thermal.heat_transport": heat,
    "thermal.thermal_regularity": faces(lambda a: a.temperature),
    "optical.wave_propagation": lambda a: sp.diff(a.wave, T, 2) - S.wave_speed**2 * lap(a.wave, a),
    "optical.support_gating": lambda a: (1 - a.phase) * a.wave,
    "optical.support_smoothness": faces(lambda a: a.phase),
}
CENTRED = ("compressible_flow.pressure_density_closure", "phase_change.density_phase_closure")


@cache
def written(where, expressions):
    named = {"sin": torch.sin, "cos": torch.cos, "sqrt": lambda v: torch.as_tensor(v, dtype=D).sqrt(), "Max": _positive}
    return sp.lambdify(AXES[where], list(expressions), modules=[named])


@cache
def left_over(truth, where):
    return truth(Symbols(where))


def _positive(*parts):
    (expression,) = [p for p in parts if isinstance(p, torch.Tensor)]
    return expression.clamp(min=0)


def sample(expressions, at, where):
    """Expressions as components at the points."""
    flat = tuple(e if isinstance(e, sp.Basic) else sp.Float(e) for e in expressions)
    parts = written(where, flat)(*at)
    return torch.cat([torch.as_tensor(p, dtype=D).expand(at[0].shape) for p in parts], dim=1)


def mesh(grid, shape, place):
    """The nodes, or the middles between them along an axis."""
    at = pf.exact.mesh(grid, shape)
    if place == "node":
        return at
    return tuple(pf.face_mean(axis, place, grid) for axis in at)


def components_of(value):
    return value if isinstance(value, list) else [value]


def error(term, truth, where, n, order, optional=None, **options):
    """Root mean square of residual - forcing in the middle and on the rim, and the forcing's own size, by place."""
    a = Symbols(where)
    shape = (n + 1,) * len(a.axes)
    grid = pf.Grid((0.9 / n, *(1.1 / n + 0.07 * i / n for i in range(len(a.space)))), order=order)
    at, found = mesh(grid, shape, "node"), {}
    slots = {slot for other in (*PILA, *GENERAL) if other.category == term.category for slot in other.reads}
    fields = {
        slot: sample([a.part(slot, c) for c in range(components(KINDS[slot], grid) or 1)], at, where) for slot in slots
    }
    pushed = left_over(truth, where)
    by_place = pushed if isinstance(pushed, dict) else {"node": components_of(pushed)}
    if optional is not None:
        count = len(by_place["node"])
        fields[optional] = sample([a.part(optional, c) for c in range(count if optional == "force" else 1)], at, where)
    out = evaluate(fields, grid, [term.category], families=[term.family], **options)[term.key]
    assert set(out.field) == set(by_place)
    for place, expressions in by_place.items():
        if optional in ("force", "source"):
            expressions = [e - a.part(optional, c) for c, e in enumerate(expressions)]
        forcing = sample(expressions, mesh(grid, shape, place), where)
        residual = out.field[place]
        if term.key == "elastic.displacement_wave":  # less the mean over time, by the trapezoid rule on true values
            bent = sample([lap(c, a) for c in a.displacement], at, where)
            weight = torch.tensor(grid.norm("t", n + 1), dtype=D).reshape(-1, 1, 1)
            forcing = forcing + S.displacement_wave_speed**2 * (bent * weight).sum(2, keepdim=True) / weight.sum()
        if term.key in CENTRED:
            forcing = forcing - forcing.mean()
        wrong, size = (residual - forcing).square().mean(dim=(0, 1)), float(forcing.square().mean().sqrt())
        middle, rim = wrong, torch.ones_like(wrong, dtype=torch.bool)
        for dim, length in enumerate(wrong.shape):
            middle = middle.narrow(dim, length // 4, length // 2)
        rim[(slice(1, -1),) * rim.ndim] = False
        found[place, "middle"] = float(middle.mean().sqrt()), size
        found[place, "rim"] = float(wrong[rim].mean().sqrt()), size
    return found


def check(term, truth, where, n, order, tolerance, optional=None, **options):
    loses = ("rim",) if term.key == "compressible_flow.gradient_regularity" else ()  # a difference of a derivative
    coarse, fine = (error(term, truth, where, size, order, optional, **options) for size in (n, 2 * n))
    for (place, part), (wrong, size) in fine.items():
        assert size > 0.1  # the forcing is there
        if wrong < 1e-12:
            continue  # algebra: exact
        # Differences across one gap are of second order whatever the grid's order; those of derivatives lose one.
        expected = order if place == "node" else min(2, order - 1) if part in loses else 2
        assert math.log2(coarse[place, part][0] / wrong) == pytest.approx(expected, abs=tolerance), (place, part)


def test_every_law_of_the_table_has_its_formula_here():
    assert list(LAWS) == [term.key for term in GENERAL]
    assert list(PAPER) == [term.key for term in PILA]


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("term", GENERAL, ids=lambda term: term.key)
def test_a_general_law_leaves_the_manufactured_forcing_at_its_order(term, order):
    truth, optional, _ = LAWS[term.key]
    n = {2: 16, 4: 20}[order]
    check(term, truth, "plane", n, order, 0.15, optional, constants=CONSTANTS)


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("term", PILA, ids=lambda term: term.key)
def test_a_term_of_pila_leaves_the_manufactured_forcing_at_its_order(term, order):
    n = {2: 16, 4: 20}[order]
    check(term, PAPER[term.key], "plane", n, order, 0.15, scales=SCALES, kappa=KAPPA)


PLANE_ONLY = ("navier_stokes", "maxwell_te")  # one law of theirs is of the plane
IN_SPACE = [term for term in GENERAL if LAWS[term.key][2] and term.category not in PLANE_ONLY]


@pytest.mark.parametrize("term", IN_SPACE, ids=lambda term: term.key)
def test_a_general_law_leaves_the_manufactured_forcing_in_space_too(term):
    truth, optional, _ = LAWS[term.key]
    coarse, fine = (error(term, truth, "space", n, 4, optional, constants=CONSTANTS) for n in (7, 14))
    for part, (wrong, size) in fine.items():
        assert wrong < 0.01 * size
        assert math.log2(coarse[part][0] / wrong) > 3.5  # 8 nodes: barely asymptotic
