"""Exact solutions, as code: fields by slot name that make the residuals of their law vanish to truncation order.

Each takes the mesh (t, y, x) or (t, z, y, x), tensors (1, 1, t, *space) from `mesh`, and the law's parameters; vectors
follow the axes. `differentiate` gives any of their derivatives, analytic and not by differences. Use them to test a
discretisation, to calibrate a tolerance, or as a known flow in a demo; batch them with `torch.cat`.
"""

from physfields.exact.laws import (
    abc_flow,
    burgers_wave,
    couette,
    heat_kernel,
    homologous_expansion,
    isentropic_vortex,
    lamb_oseen,
    maxwell_plane_wave,
    plane_elastic_wave,
    separated_phases,
    shallow_vortex,
    stefan,
)
from physfields.exact.mechanisms import (
    acoustic_wave,
    advected_gaussian,
    heat_mode,
    plane_wave,
    rigid_motion,
    standing_wave,
    taylor_green,
    travelling_wave,
    uniform_acceleration,
    uniform_expansion,
)
from physfields.exact.mesh import Fields, Mesh, differentiate, mesh

__all__ = [
    "Fields",
    "Mesh",
    "abc_flow",
    "acoustic_wave",
    "advected_gaussian",
    "burgers_wave",
    "couette",
    "differentiate",
    "heat_kernel",
    "heat_mode",
    "homologous_expansion",
    "isentropic_vortex",
    "lamb_oseen",
    "maxwell_plane_wave",
    "mesh",
    "plane_elastic_wave",
    "plane_wave",
    "rigid_motion",
    "separated_phases",
    "shallow_vortex",
    "standing_wave",
    "stefan",
    "taylor_green",
    "travelling_wave",
    "uniform_acceleration",
    "uniform_expansion",
]
