"""What torch asks of an operator: schema, fake tensors, autograd registration, tracing with dynamic shapes.

`torch.library.opcheck` takes registered operators alone, and the engine is an autograd node, so that compilers can fuse
it. Here it is registered as it is, for the test: values, fake tensors and backward are the engine's own.
"""

from typing import cast

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.optests import aot_autograd_check  # what opcheck itself calls

import physfields as pf
from physfields.matrix import nodes_needed
from physfields.stencil import combine, make_operator

BOUNDARIES = ("one_sided", "periodic", "replicate", "reflect", "zero", "sbp")
MIXED = (  # overlapping outputs, ranges with steps, an output that nothing writes
    (range(0, 4, 2), range(2), "y", 1, 1.0),
    (range(2), range(2), "x", 2, -0.5),
    (0, 1, "t", 1, 2.0),
)
UNEVEN = (0.0, 0.625, 1.625, 2.625, 3.625, 4.5, 6.0, 6.25)

pytestmark = [  # torch's own
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


def sizes_of(boundary, order):
    """The smallest legal grid."""
    n = nodes_needed(2, order, boundary)
    return (n, n, n + 1)


CASES = [pf.Grid((0.5, 1.0, 2.0), boundary=boundary) for boundary in BOUNDARIES]
CASES += [pf.Grid(path="blocks"), pf.Grid((UNEVEN[:6], 1.0, 2.0), order=4)]


def engine(case: int, back: bool):
    grid = CASES[case]
    return make_operator(grid, sizes_of(grid.boundary[0], grid.order[0]), MIXED, (2, 4), back)


@torch.library.custom_op("physfields_tests::linear", mutates_args=())
def linear(f: torch.Tensor, case: int, back: bool) -> torch.Tensor:
    """The engine's sums, or their adjoint."""
    return engine(case, back)(f)


@linear.register_fake
def _(f, case, back):
    return engine(case, back)(f)


def _remember(ctx, inputs, output):
    ctx.case, ctx.back = inputs[1:]


def _adjoint(ctx, g):
    return linear(g, ctx.case, not ctx.back), None, None


linear.register_autograd(_adjoint, setup_context=_remember)


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: f"{CASES[i].boundary[0]}-{CASES[i].order[0]}-{i}")
def test_the_engine_passes_opcheck_on_the_smallest_grid(case):
    grid = CASES[case]
    sizes = sizes_of(grid.boundary[0], grid.order[0])
    for components, back in ((2, False), (4, True)):
        f = torch.randn(1, components, *sizes, dtype=torch.float64, requires_grad=True)
        found = torch.library.opcheck(linear, (f, case, back))
        assert set(found.values()) == {"SUCCESS"}
        assert len(found) == 4  # schema, autograd registration, fake tensors, AOT dispatch with dynamic shapes


VECTORS = ("divergence", "curl", "strain_rate", "spin", "jacobian", "vector_laplacian")
OTHERS = ("gradient", "laplacian", "hessian", "biharmonic", "time_derivative", "cumulative_integral")


@pytest.mark.parametrize("name", VECTORS + OTHERS)
def test_every_operator_passes_opcheck_s_aot_dispatch_with_fixed_and_dynamic_shapes(name):
    operator, grid = getattr(pf, name), pf.Grid((UNEVEN[:6], 1.0, 0.5))
    f = torch.randn(2, 2, 6, 6, 7, dtype=torch.float64, requires_grad=True)
    for dynamic in (False, True):
        aot_autograd_check(lambda a: operator(a, grid), (f,), {}, dynamic=dynamic)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_fields_without_data_have_the_shape_dtype_and_gradient_of_real_ones(boundary):
    grid = pf.Grid((0.5, 1.0, 2.0), boundary=boundary)
    for dtype in (torch.float32, torch.float64):
        real = combine(torch.randn(2, 2, 5, 6, 7, dtype=dtype), MIXED, grid, 4)
        f = torch.empty(2, 2, 5, 6, 7, dtype=dtype, device="meta", requires_grad=True)
        out = combine(f, MIXED, grid, 4)
        (back,) = torch.autograd.grad(out, f, torch.empty_like(out))
        assert (out.shape, out.dtype, out.device.type) == (real.shape, real.dtype, "meta")
        assert (back.shape, back.dtype) == (f.shape, f.dtype)
        with FakeTensorMode():
            fake = cast(torch.Tensor, combine(torch.empty(2, 2, 5, 6, 7, dtype=dtype), MIXED, grid, 4))
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype)
