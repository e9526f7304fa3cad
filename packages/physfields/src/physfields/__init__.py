"""Finite-difference fields in torch: operators and physics residuals on (t, y, x) grids, in units."""

from importlib.metadata import version

from physfields.grid import Grid
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
from physfields.weights import fd_weights

__all__ = [
    "Grid",
    "__version__",
    "advection",
    "cumulative_integral",
    "curl",
    "divergence",
    "face_difference",
    "face_mean",
    "fd_weights",
    "from_flow_xy",
    "gradient",
    "hessian",
    "jacobian",
    "laplacian",
    "material_derivative",
    "partial",
    "spin",
    "strain_rate",
    "tensor_divergence",
    "time_derivative",
    "vector_laplacian",
]
__version__ = version("physfields")
