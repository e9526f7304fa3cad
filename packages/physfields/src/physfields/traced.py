"""The engine's autograd node as a compiler can trace it. Imported while compiling only: it loads torch's compiler."""

import logging

import torch
from torch import Tensor

from physfields.grid import Grid
from physfields.stencil import Term, apply_by_cat, make_operator

logger = logging.getLogger(__name__)


@torch.compiler.assume_constant_result
def plain_operator(key: str, sizes: tuple[int, ...], terms: tuple[Term, ...], shape: tuple[int, int], back: bool):
    """The operator as nested tuples, made while compiling: compilers cannot hold the object."""
    grid = Grid.from_key(key)
    if grid.path not in ("auto", "cat"):
        logger.warning(
            "physfields: path %r writes in place, which compilers cannot use; this graph takes 'cat'.", grid.path
        )
    operator = make_operator(grid, sizes, terms, shape, back)
    parts = tuple((*part[:5], tuple(part.matrix)) for part in operator.parts)
    return parts, operator.unwritten, operator.outputs, operator.component


class TracedLinear(torch.autograd.Function):
    """The node of `physfields.stencil` without forward mode, and with constants by name instead of an object."""

    @staticmethod
    def forward(f: Tensor, key, sizes, terms, shape, back) -> Tensor:
        return apply_by_cat(f, *plain_operator(key, sizes, terms, shape, back))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.made = inputs[1:]

    @staticmethod
    def backward(ctx, g: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        key, sizes, terms, shape, back = ctx.made
        return TracedLinear.apply(g, key, sizes, terms, shape, not back), None, None, None, None, None
