"""Finite-difference fields in torch: operators and physics residuals on (t, y, x) grids, in units."""

from importlib.metadata import version

from physfields import exact, residuals
from physfields.derivatives import Derivatives
from physfields.grid import Grid
from physfields.masks import erode_valid, face_mask, fill, masked_mean
from physfields.operators import (
    advection,
    cumulative_integral,
    curl,
    divergence,
    face_difference,
    face_mean,
    from_flow_xy,
    gradient,
    hessian,
    jacobian,
    laplacian,
    material_derivative,
    partial,
    spin,
    strain_rate,
    tensor_divergence,
    time_derivative,
    vector_laplacian,
)
from physfields.residuals import Residual, Scales
from physfields.weights import fd_weights

__all__ = [
    "Derivatives",
    "Grid",
    "Residual",
    "Scales",
    "__version__",
    "advection",
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
    "hessian",
    "jacobian",
    "laplacian",
    "masked_mean",
    "material_derivative",
    "partial",
    "residuals",
    "spin",
    "strain_rate",
    "tensor_divergence",
    "time_derivative",
    "vector_laplacian",
]
__version__ = version("physfields")
