"""Exact solutions of the laws of the eight mechanisms, in the slots that PILA's residuals read."""

import math

import torch

from physfields.exact.mesh import Fields, Mesh, along, vector


def rigid_motion(at: Mesh, *, rate: float = 0.3, drift: tuple[float, float] = (0.2, -0.1)) -> Fields:
    """Rotation (x towards y) at a rate about the origin, and a drift (y, x): no strain, no stress, curl 2 rate."""
    t, y, x = at
    v = vector(drift[0] + rate * x, drift[1] - rate * y)
    none = torch.zeros_like(t).expand(-1, 3, -1, -1, -1)
    return {"velocity": v, "displacement": t * v, "strain": none, "stress": none}


def uniform_acceleration(at: Mesh, *, acceleration: tuple[float, float] = (0.5, -0.2)) -> Fields:
    """d = a t^2 / 2, v = a t under the constant impulse J = a."""
    t = at[0]
    a = vector(torch.full_like(t, acceleration[0]), torch.full_like(t, acceleration[1]))
    return {"displacement": 0.5 * a * t**2, "velocity": a * t, "impulse": a}


def plane_wave(at: Mesh, *, k: tuple[float, ...] = (0.8, -0.6), c: float = 1.0) -> Fields:
    """sin(k . x - c |k| t) as the scalar wave, and with other phases as a velocity: f_tt = c^2 lap f."""
    phase = along(at, k) - c * math.hypot(*k) * at[0]
    swings = (phase.sin(), 0.5 * phase.cos(), -0.7 * (phase + 0.4).sin())
    return {"wave": phase.sin(), "velocity": vector(*swings[: len(k)])}


def travelling_wave(at: Mesh, *, angle: float = 0.5, c: float = 1.0, width: float = 1.5) -> Fields:
    """A Gaussian pulse moving at speed c along (sin angle, cos angle) in (y, x), unchanged in shape (d'Alembert)."""
    t, y, x = at
    s = math.sin(angle) * y + math.cos(angle) * x - c * t
    return {"wave": (-0.5 * (s / width) ** 2).exp()}


def standing_wave(at: Mesh, *, k: tuple[float, float] = (0.8, -0.6), c: float = 1.0) -> Fields:
    """d = A sin(k . x) (cos w t - cos w t_m), measured from frame m = T // 2, w = c |k|; over whole periods the mean of
    the true displacement is 0, which is what residual 5 assumes. Strain is the rate sym grad v, stress twice that."""
    t, y, x = at
    w = c * (k[0] ** 2 + k[1] ** 2) ** 0.5
    middle = t[:, :, t.shape[2] // 2 :][:, :, :1].detach()
    phase, swing, speed = k[0] * y + k[1] * x, (w * t).cos() - (w * middle).cos(), -w * (w * t).sin()
    a_y, a_x = 1.0, 0.4
    yy, xx, yx = a_y * k[0], a_x * k[1], 0.5 * (a_y * k[1] + a_x * k[0])
    rate = torch.cat([part * phase.cos() * speed for part in (yy, xx, yx)], dim=1)
    d, v = phase.sin() * swing, phase.sin() * speed
    return {
        "displacement": vector(a_y * d, a_x * d),
        "velocity": vector(a_y * v, a_x * v),
        "strain": rate,
        "stress": 2.0 * rate,
    }


def taylor_green(at: Mesh, *, viscosity: float = 0.1, density: float = 1.0) -> Fields:
    """The decaying vortex array of period 2 pi: exact for incompressible Navier-Stokes (Taylor & Green, 1937)."""
    t, y, x = at
    decay = (-2 * viscosity / density * t).exp()
    return {
        "velocity": vector(-x.sin() * y.cos() * decay, x.cos() * y.sin() * decay),
        "pressure": -0.25 * density * ((2 * x).cos() + (2 * y).cos()) * decay**2,
        "density": torch.full_like(t, density),
    }


def advected_gaussian(
    at: Mesh,
    *,
    velocity: tuple[float, float] = (0.3, -0.4),
    centre: tuple[float, float] = (1.0, 2.0),
    width: float = 1.0,
) -> Fields:
    """A blob carried by a uniform flow: as density (on 1), and as phase."""
    t, y, x = at
    squared = (y - centre[0] - velocity[0] * t) ** 2 + (x - centre[1] - velocity[1] * t) ** 2
    blob = (-0.5 * squared / width**2).exp()
    flow = vector(torch.full_like(t, velocity[0]), torch.full_like(t, velocity[1]))
    return {"density": 1.0 + 0.5 * blob, "phase": blob, "velocity": flow}


def heat_mode(
    at: Mesh,
    *,
    k: tuple[float, float] = (0.8, -0.6),
    diffusivity: float = 0.1,
    velocity: tuple[float, float] = (0.3, -0.4),
    latent_heat: float = 1.0,
    melting: float = 0.0,
) -> Fields:
    """A mode of temperature that decays while a uniform flow carries it; `melting` (phase per time) cools it."""
    t, y, x = at
    phase = k[0] * (y - velocity[0] * t) + k[1] * (x - velocity[1] * t)
    mode = phase.sin() * (-diffusivity * (k[0] ** 2 + k[1] ** 2) * t).exp()
    flow = vector(torch.full_like(t, velocity[0]), torch.full_like(t, velocity[1]))
    return {"temperature": mode - latent_heat * melting * t, "phase": melting * t, "velocity": flow}


def uniform_expansion(at: Mesh, *, rate: float = 0.2, reference_temperature: float = 1.0) -> Fields:
    """v = rate (y, x): density and absolute temperature thin out as exp(-2 rate t); the pressure is uniform."""
    t, y, x = at
    thinning = (-2 * rate * t).exp()
    return {
        "velocity": vector(rate * y, rate * x),
        "density": thinning,
        "temperature": 1.5 * thinning - reference_temperature,
        "pressure": torch.zeros_like(t),
    }


def acoustic_wave(at: Mesh, *, k: tuple[float, float] = (0.8, -0.6), c: float = 1.3, density: float = 1.0) -> Fields:
    """Linear plane sound: p = cos(k . x - w t), density D_t v = -grad p, rho = density + p / c^2."""
    t, y, x = at
    w = c * (k[0] ** 2 + k[1] ** 2) ** 0.5
    p = (k[0] * y + k[1] * x - w * t).cos()
    return {
        "pressure": p,
        "velocity": vector(k[0] / (w * density) * p, k[1] / (w * density) * p),
        "density": density + p / c**2,
    }
