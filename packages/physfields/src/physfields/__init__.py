"""Finite-difference fields in torch: operators and physics residuals on (t, y, x) or (t, z, y, x) grids, in units."""

from importlib.metadata import version

from physfields import exact, residuals
from physfields.balance import Constants, Scales
from physfields.derivatives import Derivatives
from physfields.grid import Grid, latent_times
from physfields.kinematics import box_residual, cumulative_integral, face_difference, face_mean, time_derivative
from physfields.masks import erode_valid, face_mask, fill, masked_mean
from physfields.operators import (
    biharmonic,
    curl,
    divergence,
    from_flow_xy,
    gradient,
    halo,
    hessian,
    jacobian,
    laplacian,
    partial,
    spin,
    strain_rate,
    tensor_divergence,
    vector_laplacian,
)
from physfields.poisson import Helmholtz, helmholtz_split, solve_poisson
from physfields.reduction import Residual
from physfields.transport import advection, material_derivative
from physfields.weights import fd_weights

__all__ = [
    "Constants",
    "Derivatives",
    "Grid",
    "Helmholtz",
    "Residual",
    "Scales",
    "__version__",
    "advection",
    "biharmonic",
    "box_residual",
    "cumulative_integral",
    "curl",
    "divergence",
    "erode_valid",
    "exact",
    "face_difference",
    "face_mask",
    "face_mean",
    "fd_weights",
    "fill",
    "from_flow_xy",
    "gradient",
    "halo",
    "helmholtz_split",
    "hessian",
    "jacobian",
    "laplacian",
    "latent_times",
    "masked_mean",
    "material_derivative",
    "partial",
    "residuals",
    "solve_poisson",
    "spin",
    "strain_rate",
    "tensor_divergence",
    "time_derivative",
    "vector_laplacian",
]
__version__ = version("physfields")
