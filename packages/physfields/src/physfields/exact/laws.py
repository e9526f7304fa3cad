"""Exact solutions of the general laws, in the slots that `residuals.GENERAL` reads; parameters as in `Constants`."""

import math

import torch
from torch import Tensor

from physfields.exact.mesh import Fields, Mesh, along, vector


def burgers_wave(
    at: Mesh,
    *,
    direction: tuple[float, ...] = (0.6, 0.8),
    speed: float = 0.5,
    jump: float = 0.8,
    viscosity: float = 0.2,
) -> Fields:
    """A viscous shock v = n (c - a tanh(a (n . x - c t) / 2 nu)) along n (made a unit vector); a is half its jump."""
    norm = math.hypot(*direction)
    n = tuple(c / norm for c in direction)
    s = along(at, n) - speed * at[0]
    size = speed - jump * (jump * s / (2 * viscosity)).tanh()
    return {"velocity": vector(*(c * size for c in n))}


def heat_kernel(
    at: Mesh, *, centre: tuple[float, ...] = (1.4, 1.6), diffusivity: float = 0.2, age: float = 1.0
) -> Fields:
    """What a unit of heat at a point becomes, `age` before time 0: a spreading Gaussian (also as a concentration)."""
    squared = _distance(at, centre)
    width = 4 * diffusivity * (at[0] + age)
    kernel = (-squared / width).exp() / (math.pi * width) ** (0.5 * (len(at) - 1))
    flow = vector(*(torch.zeros_like(at[0]) for _ in centre))
    return {"temperature": kernel, "concentration": kernel, "velocity": flow}


def lamb_oseen(
    at: Mesh,
    *,
    circulation: float = 3.0,
    centre: tuple[float, float] = (1.43, 1.61),
    viscosity: float = 0.1,
    density: float = 1.0,
    age: float = 2.0,
) -> Fields:
    """A viscous vortex (x towards y), exact for incompressible Navier-Stokes; `viscosity` is dynamic (Oseen, 1912)."""
    t, y, x = at
    y, x = y - centre[0], x - centre[1]
    core = 4 * viscosity / density * (t + age)
    eta = (y**2 + x**2) / core
    safe = torch.where(eta > 0, eta, 1.0)
    turn = circulation / (2 * math.pi * core) * torch.where(eta > 0, -torch.expm1(-safe) / safe, 1.0)
    # dp/dr = rho v^2 / r, with E1(eta) - E1(2 eta) as an integral over [1, 2]
    hollow = torch.where(eta > 0, torch.expm1(-safe) ** 2 / safe, 0.0) + 2 * _integral_1_2(eta)
    pressure = -density * circulation**2 / (8 * math.pi**2 * core) * hollow
    return {"velocity": vector(turn * x, -turn * y), "pressure": pressure}


def isentropic_vortex(
    at: Mesh,
    *,
    strength: float = 2.0,
    drift: tuple[float, float] = (0.3, -0.2),
    centre: tuple[float, float] = (1.4, 1.6),
    heat_ratio: float = 1.4,
) -> Fields:
    """A vortex of a perfect gas that drifts unchanged, exact for the Euler equations (Yee et al., 1999)."""
    t, y, x = at
    y, x = y - centre[0] - drift[0] * t, x - centre[1] - drift[1] * t
    bell = (1 - y**2 - x**2).exp()
    turn = strength / (2 * math.pi) * bell.sqrt()
    temperature = 1 - (heat_ratio - 1) * strength**2 / (8 * heat_ratio * math.pi**2) * bell
    density = temperature ** (1 / (heat_ratio - 1))
    velocity = vector(drift[0] + turn * x, drift[1] - turn * y)
    return {"velocity": velocity, "density": density, "pressure": density * temperature}


def abc_flow(
    at: Mesh, *, sizes: tuple[float, float, float] = (1.0, 0.8, 0.6), viscosity: float = 0.1, density: float = 1.0
) -> Fields:
    """Arnold, Beltrami and Childress: curl v = v in space, decaying; exact for incompressible Navier-Stokes."""
    t, z, y, x = at
    a, b, c = sizes
    decay = (-viscosity / density * t).exp()
    v = vector(c * y.sin() + b * x.cos(), b * x.sin() + a * z.cos(), a * z.sin() + c * y.cos()) * decay
    return {"velocity": v, "pressure": -0.5 * density * v.square().sum(dim=1, keepdim=True)}


def couette(
    at: Mesh, *, shear: float = 0.7, viscosity: float = 0.1, conductivity: float = 0.2, pressure: float = 1.0
) -> Fields:
    """A steady shear v_x = shear y of a perfect gas, which conducts away what its friction heats (T = p / rho)."""
    t, y, _ = at
    temperature = 2.0 + 0.1 * y - viscosity * shear**2 / (2 * conductivity) * y**2
    p = torch.full_like(t, pressure)
    return {"velocity": vector(torch.zeros_like(t), shear * y), "pressure": p, "density": p / temperature}


def homologous_expansion(
    at: Mesh, *, age: float = 2.0, viscosity: float = 0.1, bulk_viscosity: float = 0.0, heat_ratio: float = 1.4
) -> Fields:
    """v = x / (t + age) on a plane: a gas that thins everywhere alike, heated by its friction."""
    t, y, x = at
    s = t + age
    friction = (heat_ratio - 1) * (4 / 3 * viscosity + 4 * bulk_viscosity) / (2 * heat_ratio - 1)
    return {"velocity": vector(y / s, x / s), "density": s**-2, "pressure": 2.0 * s ** (-2 * heat_ratio) + friction / s}


def shallow_vortex(
    at: Mesh,
    *,
    strength: float = 0.4,
    depth: float = 1.0,
    drift: tuple[float, float] = (0.3, -0.2),
    centre: tuple[float, float] = (1.4, 1.6),
    gravity: float = 1.0,
) -> Fields:
    """A vortex whose depression of the surface turns the water: it drifts unchanged (shallow water, flat bed)."""
    t, y, x = at
    y, x = y - centre[0] - drift[0] * t, x - centre[1] - drift[1] * t
    bell = (-0.5 * (y**2 + x**2)).exp()
    height = depth - strength**2 / (2 * gravity) * bell**2
    return {"velocity": vector(drift[0] + strength * bell * x, drift[1] - strength * bell * y), "height": height}


def stefan(
    at: Mesh, *, stefan_number: float = 0.8, diffusivity: float = 0.5, latent_heat: float = 1.0, age: float = 2.0
) -> Fields:
    """Melting from a hot wall at x = 0: the front stands at 2 lambda sqrt(alpha t) (Stefan, 1891; Neumann).

    The wall is stefan_number x latent_heat above melting; the solid is at melting (T = 0). `level_set` is the distance
    to the front, positive in the melt; `phase` is 1 there.
    """
    t, x = at[0] + age, at[-1]
    rate = _stefan_rate(stefan_number)
    reach = 2 * (diffusivity * t).sqrt()
    wall = stefan_number * latent_heat
    temperature = wall * (1 - torch.erf(x / reach) / math.erf(rate))
    distance = rate * reach - x
    melt = (distance > 0).to(x.dtype)
    return {"temperature": torch.where(distance > 0, temperature, 0.0), "level_set": distance, "phase": melt}


def plane_elastic_wave(
    at: Mesh,
    *,
    k: tuple[float, ...] = (0.8, -0.6),
    density: float = 1.0,
    lame_lambda: float = 1.0,
    lame_mu: float = 1.0,
) -> Fields:
    """A pressure wave along k and a shear wave across it, each at its speed, as displacement."""
    size = math.hypot(*k)
    n = tuple(c / size for c in k)
    across = (-n[1], n[0], *(0.0 for _ in n[2:]))
    fast, slow = (math.sqrt(m / density) for m in (lame_lambda + 2 * lame_mu, lame_mu))
    pressure = (along(at, k) - fast * size * at[0]).sin()
    shear = 0.7 * (along(at, k) - slow * size * at[0]).cos()
    return {"displacement": vector(*(a * pressure + b * shear for a, b in zip(n, across, strict=True)))}


def maxwell_plane_wave(
    at: Mesh, *, k: tuple[float, float] = (0.8, -0.6), permittivity: float = 1.0, permeability: float = 1.0
) -> Fields:
    """Light on a plane (TE): H_z = cos(k . x - w t), the electric field across k."""
    w = math.hypot(*k) / math.sqrt(permittivity * permeability)
    H = (along(at, k) - w * at[0]).cos()
    return {"magnetic": H, "electric": vector(k[1] * H, -k[0] * H) / (permittivity * w)}


def separated_phases(
    at: Mesh, *, direction: tuple[float, ...] = (0.6, 0.8), place: float = 2.0, interface: float = 0.5
) -> Fields:
    """The flat interface at rest between two phases, tanh(s / sqrt(2 gamma)) (Cahn & Hilliard, 1958)."""
    norm = math.hypot(*direction)
    s = along(at, tuple(c / norm for c in direction)) - place
    return {"concentration": (s / math.sqrt(2 * interface)).tanh() + 0.0 * at[0]}


def _distance(at: Mesh, centre: tuple[float, ...]) -> Tensor:
    squares = [(axis - c) ** 2 for axis, c in zip(at[1:], centre, strict=True)]
    return sum(squares[1:], start=squares[0])


def _integral_1_2(eta: Tensor) -> Tensor:
    """The integral of exp(-eta u) / u over u in [1, 2], by Gauss and Legendre on 24 points (Golub & Welsch, 1969)."""
    i = torch.arange(1.0, 24.0, dtype=torch.float64)
    beta = i / (4 * i**2 - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    total = torch.zeros_like(eta)
    for node, first in zip(nodes.tolist(), vectors[0].tolist(), strict=True):
        u = 1.5 + 0.5 * node
        total = total + first**2 / u * (-eta * u).exp()
    return total


def _stefan_rate(number: float) -> float:
    """lambda with sqrt(pi) lambda exp(lambda^2) erf(lambda) = Stefan number, by bisection."""
    low, high = 0.0, 10.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if math.sqrt(math.pi) * middle * math.exp(middle**2) * math.erf(middle) < number:
            low = middle
        else:
            high = middle
    return low
