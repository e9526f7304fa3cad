"""Linear differential operators as one autograd node each: the engine under every operator of this package.

`combine` takes a field and a table of terms (out component, in component, axis, m, factor) and returns the field of the
sums: a divergence is two terms, a strain rate four. `derivative` is the operator of one term. The backward of an
operator is its transposed matrix, applied by the same code, so that double backward, forward mode and vmap are the
operator itself, and no graph of slices is kept. No sum has an undefined order: gradients repeat bit for bit.

Three ways to apply a matrix; `Grid.path` chooses, "auto" by itself:
    rows     slices written in place, edge rows one by one: the fastest where calls are cheap (a CPU)
    blocks   edge rows of one end as one product and one sum: the fewest kernels (a GPU); as `rows` where rows differ
    cat      no writing in place: what compilers and tensor subclasses want, and what they get whatever was asked for
             (a compiler for a CPU gets the other form of `physfields.traced`)
"""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from operator import index
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from physfields.grid import Grid
from physfields.matrix import Matrix, derivative_matrix, nodes_needed

Components = int | range
Term = tuple[Components, Components, str, int, float]
OneDerivative = Callable[[Tensor, int, float, Sequence], Tensor]  # of a field, along a dimension, scaled, by a matrix


class Part(NamedTuple):
    """One term ready to run: `into` and `of` are (start, stop, step) of components, None is the whole tensor."""

    into: tuple[int, int, int] | None
    of: tuple[int, int, int] | None
    add: bool
    dim: int
    scale: float
    matrix: Matrix
    scattered: Matrix | None  # of an adjoint: the matrix that `matrix` transposes, where its rows are the shorter way


class Operator:
    """A linear operator on fields of fixed sizes: its parts, and the operator of the transposed parts."""

    def __init__(self, grid: Grid, sizes: tuple[int, ...], terms: tuple[Term, ...], shape: tuple[int, int], back: bool):
        self.grid, self.path = grid, grid.path
        self._made = grid, sizes, terms, shape, back
        self.component = -len(sizes) - 1  # the dimension of the components
        self.whole = terms[0][0] == -1  # one term on the whole tensor, which may have no components
        self.outputs = shape[0] if back else shape[1]
        self.parts, self.unwritten = self._schedule(grid, sizes, terms, back)
        self.columns: dict[tuple, Tensor] = {}  # weights as tensors, by place, dtype and device

    @cached_property
    def adjoint(self) -> "Operator":
        grid, sizes, terms, shape, back = self._made
        return make_operator(grid, sizes, terms, shape, not back)

    def _schedule(
        self, grid: Grid, sizes: tuple[int, ...], terms: tuple[Term, ...], back: bool
    ) -> tuple[tuple[Part, ...], tuple[int, ...]]:
        written: set[int] = set()
        parts: list[Part] = []
        for target, source, axis, m, factor in terms:
            dim, n = grid.dim(axis), sizes[grid.dim(axis)]
            if n == 1 and grid.singleton == "zero":
                continue
            order, rule, step = grid.order[grid.index(axis)], grid.rule(axis), grid.step(axis)
            matrix = derivative_matrix(n, m, order, rule, step, back)
            scattered = derivative_matrix(n, m, order, rule, step, False) if back else None
            if scattered is not None and (scattered.scale != matrix.scale or not _is_even(scattered)):
                scattered = None
            into, of = (source, target) if back else (target, source)
            for a, b in _pieces(into, of, written):
                scale, add = matrix.scale * factor, a[0] in written
                parts.append(Part(_span(a), _span(b), add, dim, scale, matrix, scattered))
                written.update(a)
        return tuple(parts), tuple(c for c in range(self.outputs) if c not in written)

    def __call__(self, f: Tensor) -> Tensor:
        if not _is_plain(f):
            return apply_by_cat(f, self.parts, self.unwritten, self.outputs, self.component, one=join_rows)
        path = self.path if self.path != "auto" else "rows" if f.device.type == "cpu" else "blocks"
        if path == "cat":
            return apply_by_cat(f, self.parts, self.unwritten, self.outputs, self.component, one=join_rows)
        return self._in_place(f, self._block if path == "blocks" else _fill_rows)

    def _in_place(self, f: Tensor, edges: Callable[[Tensor, Tensor, Part], None]) -> Tensor:
        shape = list(f.shape)
        if not self.whole:
            shape[self.component] = self.outputs
        out, scratch = f.new_empty(shape), {}
        for part in self.parts:
            source = _components(f, part.of, self.component)
            total = target = _components(out, part.into, self.component)
            if part.add:
                size = target.shape
                target = scratch[size] if size in scratch else scratch.setdefault(size, f.new_empty(size))
            if part.scattered is not None and edges is _fill_rows:
                _scatter(target, source, part.dim, part.scattered)
            else:
                self._interior(target, source, part)
                edges(target, source, part)
            if part.add:
                total.add_(target, alpha=part.scale)
            elif part.scale != 1.0:
                target.mul_(part.scale)
        if self.whole and not self.parts:
            return out.zero_()
        for c in self.unwritten:
            out.narrow(self.component, c, 1).zero_()
        return out

    def _interior(self, target: Tensor, f: Tensor, part: Part) -> None:
        dim, matrix = part.dim, part.matrix
        if not matrix.inner:
            target.narrow(dim, matrix.first, matrix.length).zero_()
            return
        out = target.narrow(dim, matrix.first, matrix.length)
        weights = [
            self._column(f, dim, (w,), (matrix, o)).squeeze(dim - 1) if isinstance(w, tuple) else w
            for o, w in matrix.inner
        ]
        slices = [f.narrow(dim, matrix.first + o, matrix.length) for o, _ in matrix.inner]
        _sum_into(out, slices, weights)

    def _block(self, target: Tensor, f: Tensor, part: Part) -> None:
        for first, column, weights in _blocks(part.matrix):
            if len(weights) == 1 and len(weights[0]) == 1:
                out, slices = target.narrow(part.dim, first, 1), [f.narrow(part.dim, column, 1)]
                _sum_into(out, slices, list(weights[0]))
                continue
            columns = f.narrow(part.dim, column, len(weights[0])).unsqueeze(part.dim - 1)
            product = columns * self._column(f, part.dim, weights, (part.matrix, first, "block"))
            torch.sum(product, part.dim, out=target.narrow(part.dim, first, len(weights)))
        _fill_rows(target, f, part, [row for row in part.matrix.edges if row[0] not in _in_blocks(part.matrix)])

    def _column(self, f: Tensor, dim: int, weights: Sequence[Sequence[float]], key: tuple) -> Tensor:
        """Weights (row, column) shaped to broadcast over f with a dimension of rows before dim; kept on the device."""
        key = (id(key[0]), *key[1:], dim, f.dtype, f.device)
        if key not in self.columns:
            with torch.inference_mode(False):
                made = torch.tensor(weights, dtype=f.dtype, device=f.device)
            self.columns[key] = made.reshape(*made.shape, *[1] * (-1 - dim))
        return self.columns[key]


def _is_plain(f: Tensor) -> bool:
    """Whether f can be written in place: no subclass (a compiler's, a user's) and no batched wrapper without storage.

    Batched tangents and cotangents come past the vmap rule: `torch.autograd.grad(is_grads_batched=True)`, forward mode.
    """
    if type(f) is not Tensor and type(f) is not torch.nn.Parameter:
        return False
    try:
        f.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return False
    return True


def _fill_rows(target: Tensor, f: Tensor, part: Part, rows: Sequence | None = None) -> None:
    for i, terms in part.matrix.edges if rows is None else rows:
        out = target.narrow(part.dim, i, 1)
        if terms:
            _sum_into(out, [f.narrow(part.dim, j, 1) for j, _ in terms], [w for _, w in terms])
        else:
            out.zero_()


def _is_even(matrix: Matrix) -> bool:
    """Whether the inner rows are long and alike."""
    span = max((o for o, _ in matrix.inner), default=0) - min((o for o, _ in matrix.inner), default=0)
    return matrix.length > span > 0 and not any(isinstance(w, tuple) for _, w in matrix.inner)


def _scatter(out: Tensor, f: Tensor, dim: int, matrix: Matrix) -> None:
    """out = the transposed matrix times f, from the matrix's own rows: each spreads a node of f over what it reads.

    The inner rows are a band for each offset, and between the ends of bands the same ones overlap; then come the edge
    rows, one column at a time. Of the transposed matrix twice as many rows are edges.
    """
    n, first, length = matrix.n, matrix.first, matrix.length
    bands = [(first + o, first + o + length, o, w) for o, w in matrix.inner]
    ends = sorted({0, n, *(a for a, *_ in bands), *(b for _, b, *_ in bands)})
    for low, high in pairwise(ends):
        target = out.narrow(dim, low, high - low)
        here = [(o, w) for a, b, o, w in bands if a <= low and high <= b]
        if here:
            _sum_into(target, [f.narrow(dim, low - o, high - low) for o, _ in here], [w for _, w in here])
        else:
            target.zero_()
    for i, terms in matrix.edges:
        for j, w in terms:
            out.narrow(dim, j, 1).add_(f.narrow(dim, i, 1), alpha=w)


def _sum_into(out: Tensor, slices: list[Tensor], weights: list) -> None:
    """out = the sum of weight * slice, in the fewest passes; weights are numbers, or tensors all."""
    if isinstance(weights[0], Tensor):
        torch.mul(slices[0], weights[0], out=out)
        for f, w in zip(slices[1:], weights[1:], strict=True):
            out.addcmul_(f, w)
        return
    if weights[0] == 1.0 and len(slices) > 1:
        torch.add(slices[0], slices[1], alpha=weights[1], out=out)
        start = 2
    else:
        torch.mul(slices[0], weights[0], out=out)
        start = 1
    for f, w in zip(slices[start:], weights[start:], strict=True):
        out.add_(f, alpha=w)


def apply_by_cat(
    f: Tensor, parts: Sequence, unwritten: Sequence[int], outputs: int, component: int, *, one: OneDerivative
) -> Tensor:
    """The same sums without writing in place; plain code on plain tuples, which compilers trace."""
    if not parts and not unwritten:
        return torch.zeros_like(f)
    spans = {part[0] for part in parts}
    covered = [c for into in spans if into is not None for c in range(*into)]
    # Whole spans where they do not overlap: each component cut out and joined again would be a copy.
    one_by_one = len(covered) != len(set(covered)) or any(into is not None and into[2] != 1 for into in spans)
    totals = {}
    for into, of, add, dim, scale, matrix, *_ in parts:
        value = one(_components(f, of, component), dim, scale, matrix)
        if into is None:
            return value
        if one_by_one:
            pieces = [(c, value.narrow(component, k, 1)) for k, c in enumerate(range(*into))]
        else:
            pieces = [(into[0], value)]
        for c, piece in pieces:
            totals[c] = totals[c] + piece if add else piece
    for c in unwritten:
        totals[c] = torch.zeros_like(f.narrow(component, 0, 1))
    joined = [totals[c] for c in range(outputs) if c in totals]
    return joined[0] if len(joined) == 1 else torch.cat(joined, dim=component)


def join_rows(f: Tensor, dim: int, scale: float, matrix: Sequence) -> Tensor:
    """One derivative along dim: the inner rows and each edge row, joined."""
    n, _, first, count, inner, edges, _ = matrix
    rows = {}
    if count:
        shifted = [(f.narrow(dim, first + o, count), w) for o, w in inner]
        rows[first] = _weighted(shifted, scale, dim) if inner else torch.zeros_like(f.narrow(dim, first, count))
    for i, terms in edges:
        columns = [(f.narrow(dim, j, 1), w) for j, w in terms]
        rows[i] = _weighted(columns, scale, dim) if terms else torch.zeros_like(f.narrow(dim, i, 1))
    return torch.cat([rows[i] for i in range(n) if i in rows], dim=dim)


def _weighted(terms: list, scale: float, dim: int) -> Tensor:
    total = None
    for f, w in terms:
        weight = w
        if isinstance(w, tuple):
            weight = torch.tensor(w, dtype=f.dtype, device=f.device).reshape([len(w)] + [1] * (-1 - dim))
        total = f * weight if total is None else total + f * weight
    assert total is not None
    return total * scale  # before the join: behind it, it would be another pass over memory


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(f: Tensor, operator: Operator) -> Tensor:
        return operator(f)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.operator = inputs[1]

    @staticmethod
    def backward(ctx, g: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Linear.apply(g, ctx.operator.adjoint), None

    @staticmethod
    def jvp(ctx, tangent: Tensor, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Linear.apply(tangent, ctx.operator)

    @staticmethod
    def vmap(info, in_dims, f: Tensor, operator: Operator):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Linear.apply(f.movedim(in_dims[0], 0), operator), 0


def combine(f: Float[Tensor, "..."], terms: tuple[Term, ...], grid: Grid, components: int) -> Float[Tensor, "..."]:
    """The field of `components` sums: each term (into, of, axis, m, factor) adds factor * D^m of `of` to `into`.

    `into` and `of` are components, or equally long ranges of them; the field is (..., c, *grid.axes).

    >>> u = torch.arange(4.0).expand(1, 2, 4, 4, 4)
    >>> combine(u, ((0, 0, "y", 1, 1.0), (0, 1, "x", 1, 1.0)), Grid(), 1).unique()  # a divergence
    tensor([1.])
    """
    sizes = _sizes(f, grid)
    _check(grid, sizes, terms)
    return _run(f, grid, sizes, terms, (index(f.shape[-len(sizes) - 1]), components))


def derivative(f: Float[Tensor, "*axes"], axis: str, m: int, grid: Grid) -> Float[Tensor, "*axes"]:
    """D^m f along an axis (the last dimensions of f are the grid's), in units of f per coordinate^m."""
    sizes, terms = _sizes(f, grid), ((-1, -1, axis, m, 1.0),)
    _check(grid, sizes, terms)
    return _run(f, grid, sizes, terms, (0, 0))


def _run(f: Tensor, grid: Grid, sizes: tuple[int, ...], terms: tuple[Term, ...], shape: tuple[int, int]) -> Tensor:
    if torch.compiler.is_compiling():
        from physfields.traced import TracedLinear  # with the compiler itself, a second's import

        out = TracedLinear.apply(f, grid.key, sizes, terms, shape, False)
    else:
        out = _Linear.apply(f, make_operator(grid, sizes, terms, shape, False))
    assert isinstance(out, Tensor)
    return out


def _sizes(f: Tensor, grid: Grid) -> tuple[int, ...]:
    # index() makes a compiler's symbolic size a number: the edge rows depend on it.
    return tuple(index(f.shape[k - len(grid.axes)]) for k in range(len(grid.axes)))


def _check(grid: Grid, sizes: tuple[int, ...], terms: tuple[Term, ...]) -> None:
    for _, _, axis, m, _ in terms:
        n, place = sizes[grid.dim(axis)], grid.index(axis)
        grid.check_length(axis, n)
        needed = nodes_needed(m, grid.order[place], grid.boundary[place])
        if n < needed and not (n == 1 and grid.singleton == "zero"):
            raise ValueError(
                f"axis {axis} has {n} nodes; derivative {m} at order {grid.order[place]} needs at least {needed}: "
                f'lengthen the axis, lower the order, or use Grid(singleton="zero") when it has one node.'
            )


@lru_cache(maxsize=4096)
def make_operator(grid: Grid, sizes: tuple[int, ...], terms: tuple[Term, ...], shape: tuple[int, int], back: bool):
    return Operator(grid, sizes, terms, shape, back)


def _components(f: Tensor, span: tuple[int, int, int] | None, component: int) -> Tensor:
    if span is None:
        return f
    start, stop, step = span
    if step == 1:
        return f.narrow(component, start, stop - start)
    return f.movedim(component, 0)[start:stop:step].movedim(0, component)


def _pieces(into: Components, of: Components, written: set[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The term's components, one by one if only some of them have been written to before."""
    a, b = (tuple(c) if isinstance(c, range) else (c,) for c in (into, of))
    assert len(a) == len(b)
    return [(a, b)] if len({c in written for c in a}) == 1 else [((i,), (j,)) for i, j in zip(a, b, strict=True)]


def _span(components: tuple[int, ...]) -> tuple[int, int, int] | None:
    first, *rest = components
    if first == -1:
        return None
    return (first, rest[-1] + 1, rest[0] - first) if rest else (first, first + 1, 1)


@lru_cache(maxsize=1024)
def _blocks(matrix: Matrix) -> tuple[tuple[int, int, tuple[tuple[float, ...], ...]], ...]:
    """Runs of edge rows that read the same columns: (first row, first column, weights).

    The rows of an adjoint may read any of the run's columns: what spreads there is a gradient and no field.
    """
    runs: list[list] = []
    for i, terms in matrix.edges:
        columns = {j for j, _ in terms}
        low, high = min(columns, default=0), max(columns, default=0)
        solid = bool(columns) and high - low < 2 * len(columns) + 2
        last = runs[-1] if runs else None
        joins = solid and last is not None and last[-1][0] == i - 1 and (matrix.transposed or last[-1][1] == columns)
        if joins:
            assert last is not None
            last.append((i, columns, dict(terms)))
        elif solid and (matrix.transposed or len(columns) == high - low + 1):
            runs.append([(i, columns, dict(terms))])
    blocks = []
    for run in runs:
        if len(run) == 1 and len(run[0][1]) <= 2:
            continue  # as many kernels row by row
        low, high = min(min(c) for _, c, _ in run), max(max(c) for _, c, _ in run)
        weights = tuple(tuple(w.get(j, 0.0) for j in range(low, high + 1)) for _, _, w in run)
        blocks.append((run[0][0], low, weights))
    return tuple(blocks)


@lru_cache(maxsize=1024)
def _in_blocks(matrix: Matrix) -> frozenset[int]:
    return frozenset(first + k for first, _, weights in _blocks(matrix) for k in range(len(weights)))


def halo(f: Shaped[Tensor, "..."], dim: int, before: int, after: int, boundary: str) -> Shaped[Tensor, "..."]:
    """f with `before` and `after` ghost cells along dim, filled by the rule; `one_sided` and `sbp` have none."""
    n = f.shape[dim]
    first, last = f.narrow(dim, 0, 1), f.narrow(dim, n - 1, 1)
    if boundary == "periodic":
        low, high = [f.narrow(dim, n - before, before)], [f.narrow(dim, 0, after)]
    elif boundary == "replicate":
        low, high = [first] * before, [last] * after
    elif boundary == "zero":
        low, high = [torch.zeros_like(first)] * before, [torch.zeros_like(last)] * after
    elif boundary == "reflect":
        low = [f.narrow(dim, k, 1) for k in range(before, 0, -1)]
        high = [f.narrow(dim, n - 1 - k, 1) for k in range(1, after + 1)]
    else:
        raise ValueError(f"halo: expected periodic, replicate, reflect or zero, got {boundary!r}.")
    return torch.cat([*low, f, *high], dim=dim)
