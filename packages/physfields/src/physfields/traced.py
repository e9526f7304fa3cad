"""The engine's autograd node as a compiler can trace it. Imported while compiling only: it loads torch's compiler."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from physfields.grid import Grid
from physfields.matrix import ghost_rows
from physfields.stencil import Term, apply_by_cat, join_rows, make_operator

logger = logging.getLogger(__name__)
LONGEST_EDGES = 4  # rows at both ends, compared with for each column; adjoints have more and took 2.6 times as long so


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


@torch.compiler.assume_constant_result
def plain_ghosts(key: str, axis: str, n: int, width: int) -> tuple[tuple, tuple]:
    """`ghost_rows` of a one-sided axis, made while compiling: compilers cannot hold fractions."""
    grid = Grid.from_key(key)
    return ghost_rows(grid.step(axis), n, grid.order[grid.index(axis)] + 2, width)


def read_rows(f: Tensor, dim: int, scale: float, matrix: Sequence) -> Tensor:
    """One derivative along dim as a sum over columns, each row reading where its own column is: one kernel, no join.

    Which node a row reads and how it weighs it is worked out from the row's number, so that the compiler can merge the
    derivative into the kernel that uses it. For that the last dimension, whose rows lie in one vector register, must
    not be dim, and the edges must be short: else `join_rows`.
    """
    n, _, _, _, inner, edges, _ = matrix
    uneven = any(isinstance(w, tuple) for _, w in inner)
    if dim == -1 or uneven or not inner or len(edges) > LONGEST_EDGES or f.device.type != "cpu":
        return join_rows(f, dim, scale, matrix)
    row, total = torch.arange(n, device=f.device), None
    # A row of fewer terms reads one of its own nodes once more, for nothing: what it does not read may be NaN.
    for k in range(max(len(terms) for terms in (inner, *(terms for _, terms in edges)))):
        offset, w = inner[k] if k < len(inner) else (inner[0][0], 0.0)
        column, weight = row + offset, torch.full((n,), w * scale, dtype=f.dtype, device=f.device)
        for i, terms in edges:
            j, v = terms[k] if k < len(terms) else (terms[0][0], 0.0) if terms else (i, 0.0)
            column = torch.where(row == i, j, column)
            weight = torch.where(row == i, v * scale, weight)
        read = torch.ops.aten._unsafe_index(f, [None] * (f.ndim + dim) + [column])  # the columns are in range
        part = read * weight.reshape([n] + [1] * (-1 - dim))
        total = part if total is None else total + part
    assert total is not None
    return total


class TracedLinear(torch.autograd.Function):
    """The node of `physfields.stencil` without forward mode, and with constants by name instead of an object."""

    @staticmethod
    def forward(f: Tensor, key, sizes, terms, shape, back) -> Tensor:
        return apply_by_cat(f, *plain_operator(key, sizes, terms, shape, back), one=read_rows)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.made = inputs[1:]

    @staticmethod
    def backward(ctx, g: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        key, sizes, terms, shape, back = ctx.made
        return TracedLinear.apply(g, key, sizes, terms, shape, not back), None, None, None, None, None
