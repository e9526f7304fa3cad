"""AFE: recovers the fields of the bank from the encoder's features, observable ones first.

Velocity is the kinematic anchor: it is read out of a scaffold by a light head, and divergence, curl, strain rate and
displacement are derived from it by the operators of `physfields`, never predicted beside it. Pressure, density, and
then the weak fields (phase, temperature, impulse, wave) come from heads that read the features and what has been
recovered before them. A field that the phase has not reached is exactly zero and its head is not run.

Units: latent pixels and source frames / 4. Vectors (y, x), y down. `strain` is a strain RATE (it is made of velocity,
Eq. 16) and `stress` its closure with pressure. Pressure and temperature are centred over each sample; density is
above a floor; phase is in (0, 1), 1 = molten or active. Everything here runs and ends in fp32, whatever autocast
says: a second derivative of a rounded field is noise.

References: PILA (Wang et al., 2026), Eq. 13-20; head layers and the context of the weak heads are our choice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

import physfields as pf
from pila.bank import CHANNELS, COMPONENTS, PHASES, SLOTS, pack, read

__all__ = ["AFE", "Recovered"]

Mode = Literal["anchored", "free_kinematics", "scaffold"]


@dataclass(frozen=True)
class Recovered:
    """The packed bank P, the same fields by name (only those that the phase has reached), and the scaffold P^pre (Eq.
    13).
    """

    bank: Float[Tensor, "b 32 t h w"]
    scaffold: Float[Tensor, "b 32 t h w"]
    fields: Mapping[str, Float[Tensor, "b _ t h w"]]


class Head(nn.Module):
    """1x1x1, GELU, 3x3x3, GELU, 1x1x1 with a small start."""

    def __init__(self, channels: int, out: int, width: int) -> None:
        super().__init__()
        self.inlet = nn.Conv3d(channels, width, 1)
        self.local = nn.Conv3d(width, width, 3, padding=1)
        self.out = nn.Conv3d(width, out, 1)
        nn.init.normal_(self.out.weight, std=1e-2)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, *context: Float[Tensor, "b _ t h w"]) -> Float[Tensor, "b c t h w"]:
        """Predict a field from its context, concatenated."""
        return self.out(F.gelu(self.local(F.gelu(self.inlet(torch.cat(context, 1))))))


class AFE(nn.Module):
    """The scaffold and the heads; `mode` is "anchored" (the paper), or an ablation.

    "free_kinematics" (w/o kinematic anchor) reads displacement and strain from the scaffold and gives the heads no
    derived descriptors; "scaffold" (w/o AFE) reads every field from the scaffold.
    """

    def __init__(
        self,
        features: int,
        *,
        width: int,
        density_floor: float,
        pressure_scale: float,
        shear_scale: float,
        mode: Mode = "anchored",
    ) -> None:
        super().__init__()
        self.density_floor, self.pressure_scale, self.shear_scale = density_floor, pressure_scale, shear_scale
        self.mode: Mode = mode
        motion = 2 + 3 + 1 + 1  # v, E, div v, curl v
        self.scaffold = nn.Conv3d(features, CHANNELS, 1)
        self.velocity = nn.Conv3d(4, 2, 1, bias=False)
        with torch.no_grad():  # starts as the average of the two copies, `bank.read`
            self.velocity.weight.copy_(0.5 * torch.eye(2).repeat(1, 2)[:, :, None, None, None])
        if mode != "scaffold":
            self.pressure = Head(features + motion, 1, width)
            self.density = Head(features + motion, 1, width)
            self.phase = Head(features + 1 + 1 + 1 + 2, 1, width)  # |v|, div v, rho, d
            self.temperature = Head(features + 2 + 1 + 1, 1, width)  # v, rho, phi
            self.impulse = Head(features + 2 + 2 + 3 + 3 + 1, 2, width)  # v, D_t v, E, S, p
            self.wave = Head(features + 1, 1, width)  # phi

    def forward(self, features: Float[Tensor, "b d t h w"], grid: pf.Grid, phase: str = "wave") -> Recovered:
        """Recover the slots of a phase: core, phase, temperature, impulse or wave (everything)."""
        with torch.autocast(features.device.type, enabled=False):
            scaffold = self.scaffold(features.float())
            if self.mode == "scaffold":
                fields = {slot: read(scaffold, slot) for slot in SLOTS if slot in PHASES[phase]}
                fields["velocity"] = self.velocity(scaffold[:, SLOTS["velocity"]])
            else:
                fields = self._fields(features.float(), scaffold, grid, PHASES[phase])
            bank = pack(fields, scaffold=scaffold[:, SLOTS["velocity"]])
            return Recovered(bank, scaffold, fields)

    def readout(self, bank: Float[Tensor, "b 32 t h w"], phase: str = "wave") -> dict[str, Float[Tensor, "b _ t h w"]]:
        """Read fields back from a (refined) bank, the velocity by its learned head: R in Eq. 5 and 24."""
        with torch.autocast(bank.device.type, enabled=False):
            fields = {slot: read(bank.float(), slot) for slot in SLOTS if slot in PHASES[phase]}
            fields["velocity"] = self.velocity(bank.float()[:, SLOTS["velocity"]])
            return fields

    def _fields(self, f: Tensor, scaffold: Tensor, grid: pf.Grid, active: tuple[str, ...]) -> dict[str, Tensor]:
        v = self.velocity(scaffold[:, SLOTS["velocity"]])
        if self.mode == "anchored":
            div, strain = pf.divergence(v, grid), pf.strain_rate(v, grid)
            motion = (v, strain, div, pf.curl(v, grid))
            d = pf.cumulative_integral(v, grid, anchor="middle")
        else:
            strain, d = read(scaffold, "strain"), read(scaffold, "displacement")
            div = torch.zeros_like(v[:, :1])
            motion = (v, strain, div, div)
        p = _centred(self.pressure(f, *motion))
        rho = self.density_floor + F.softplus(self.density(f, *motion))
        fields = {
            "displacement": d,
            "velocity": v,
            "pressure": p,
            "density": rho,
            "strain": strain,
            "stress": self._stress(p, strain),
        }
        if "phase" in active:
            speed = (v.square().sum(1, keepdim=True) + 1e-12).sqrt()
            fields["phase"] = torch.sigmoid(self.phase(f, speed, div, rho, d))
        if "temperature" in active:
            fields["temperature"] = _centred(self.temperature(f, v, rho, fields["phase"]))
        if "impulse" in active:
            context = (v, pf.time_derivative(v, grid), strain, fields["stress"], p)
            fields["impulse"] = self.impulse(f, *context)
        if "wave" in active:
            fields["wave"] = self.wave(f, fields["phase"])
        assert all(fields[slot].shape[1] == COMPONENTS[slot] for slot in fields)
        return fields

    def _stress(self, p: Float[Tensor, "b 1 t h w"], strain: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """S = -a p I + 2 mu E as (yy, xx, yx) (Eq. 20)."""
        spherical = torch.cat([p, p, torch.zeros_like(p)], 1)
        return 2 * self.shear_scale * strain - self.pressure_scale * spherical


def _centred(f: Tensor) -> Tensor:
    return f - f.mean((1, 2, 3, 4), keepdim=True)
