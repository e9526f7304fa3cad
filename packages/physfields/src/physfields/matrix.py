"""A derivative along one axis as a matrix of n nodes: a repeated row inside, and rows of their own at the edges.

Every boundary rule and spacing ends here as rows `{column: weight}` of exact rationals, so that one engine
(`physfields.stencil`) applies them all, and the adjoint is the transposed matrix, which has the same form. Weights are
kept as whole numbers with a common factor where there is a small one: differences stay unscaled until the end, and a
constant field gives zero up to the last bit.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from physfields.sbp import sbp_length, sbp_rows
from physfields.weights import fd_weights

Row = dict[int, Fraction]
LARGEST_DENOMINATOR = 2**20  # beyond it, whole-number weights would not fit fp32


class Matrix(NamedTuple):
    """scale * (row i: the sum of weight * f[column]).

    Rows first .. first + length - 1 share their offsets: (offset, weight), or (offset, weights of each row) on an
    uneven axis. The others are listed in `edges`: (row, ((column, weight), ...)). A weight 1 comes first.
    """

    n: int
    scale: float
    first: int
    length: int
    inner: tuple[tuple[int, float | tuple[float, ...]], ...]
    edges: tuple[tuple[int, tuple[tuple[int, float], ...]], ...]
    transposed: bool


def nodes_needed(m: int, order: int, boundary: str) -> int:
    """The fewest nodes on which D^m is defined."""
    return sbp_length(order) if boundary == "sbp" else order + m


@lru_cache(maxsize=1024)
def derivative_matrix(
    n: int, m: int, order: int, boundary: str, step: float | tuple[float, ...], transposed: bool
) -> Matrix:
    """D^m on n nodes, or its transpose."""
    if isinstance(step, tuple):
        rows, scale = uneven_rows(step, m, order, boundary), 1.0
    else:
        rows, scale = even_rows(n, m, order, boundary), step**-m
    return _compress(_transpose(rows) if transposed else rows, scale, transposed)


def even_rows(n: int, m: int, order: int, boundary: str) -> list[Row]:
    """Rows of D^m on n nodes of unit spacing."""
    if boundary == "sbp":
        first = rows = sbp_rows(order, n)
        for _ in range(m - 1):
            rows = _product(first, rows)
        return rows
    radius = (m + 1) // 2 - 1 + order // 2
    central = fd_weights(range(-radius, radius + 1), m)
    rows: list[Row] = []
    for i in range(n):
        if radius <= i < n - radius:
            rows.append({i + k - radius: w for k, w in enumerate(central) if w})
        elif boundary == "one_sided" and 2 * i < n:
            rows.append(dict(enumerate(fd_weights([k - i for k in range(order + m)], m))))
        elif boundary == "one_sided":
            weights = fd_weights([k - (n - 1 - i) for k in range(order + m)], m)
            rows.append({n - 1 - k: (-1) ** m * w for k, w in enumerate(weights)})
        else:
            rows.append(_folded(n, i - radius, central, boundary))
    return rows


def uneven_rows(positions: Sequence[float], m: int, order: int, boundary: str) -> list[Row]:
    """Rows of D^m at these positions, each exact for polynomials below degree order + m.

    Ghost nodes (`replicate`, `reflect`, `zero`) mirror the inner ones about the edge node.
    """
    n, points = len(positions), order + m
    left, x = (points - 1) // 2, [Fraction(p) for p in positions]
    if boundary == "one_sided":
        rows = []
        for i in range(n):
            start = min(max(i - left, 0), n - points)
            weights = fd_weights([x[start + k] - x[i] for k in range(points)], m)
            rows.append({start + k: w for k, w in enumerate(weights) if w})
        return rows
    ghosts = [2 * x[0] - x[k] for k in range(left, 0, -1)], [2 * x[-1] - x[-1 - k] for k in range(1, points - left)]
    wide = [*ghosts[0], *x, *ghosts[1]]
    return [
        _folded(n, i - left, fd_weights([wide[i + k] - x[i] for k in range(points)], m), boundary) for i in range(n)
    ]


def ghost_rows(step: float | tuple[float, ...], n: int, points: int, width: int) -> tuple[tuple, tuple]:
    """What `width` ghost nodes below and above an axis read of it: the polynomial through its outermost points.

    A ghost is ((node, weight), ...), in the order of the nodes. Coordinates are mirrored about the edge nodes.
    """
    x = [Fraction(p) for p in (step if isinstance(step, tuple) else range(n))]  # in steps there is no rounding

    def ghost(k: int, nodes: range) -> tuple[tuple[int, float], ...]:
        place = 2 * x[nodes[0]] - x[nodes[k]]
        weights = fd_weights([x[i] - place for i in nodes[:points]], 0)
        return tuple((i, float(w)) for i, w in zip(nodes[:points], weights, strict=True))

    low = tuple(ghost(k, range(n)) for k in range(width, 0, -1))
    return low, tuple(ghost(k, range(n - 1, -1, -1)) for k in range(1, width + 1))


def _folded(n: int, start: int, weights: Sequence[Fraction], boundary: str) -> Row:
    """A row that reaches beyond the ends, with what it reads there expressed by the nodes inside."""
    row: Row = {}
    for k, w in enumerate(weights):
        j = start + k
        if not 0 <= j < n:
            if boundary == "zero":
                continue
            if boundary == "periodic":
                j %= n
            elif boundary == "replicate":
                j = min(max(j, 0), n - 1)
            else:
                assert boundary == "reflect"
                j = -j if j < 0 else 2 * (n - 1) - j
        row[j] = row.get(j, Fraction(0)) + w
    return {j: w for j, w in row.items() if w}


def _product(a: list[Row], b: list[Row]) -> list[Row]:
    rows: list[Row] = []
    for row in a:
        out: Row = {}
        for k, w in row.items():
            for j, v in b[k].items():
                out[j] = out.get(j, Fraction(0)) + w * v
        rows.append({j: w for j, w in sorted(out.items()) if w})
    return rows


def _transpose(rows: list[Row]) -> list[Row]:
    out: list[Row] = [{} for _ in rows]
    for i, row in enumerate(rows):
        for j, w in row.items():
            out[j][i] = w
    return out


def _compress(rows: list[Row], scale: float, transposed: bool) -> Matrix:
    n = len(rows)
    # Not the lcm of all denominators at once: those of an uneven axis would have thousands of digits.
    common = 1
    for denominator in {w.denominator for row in rows for w in row.values()}:
        common = math.lcm(common, denominator)
        if common > LARGEST_DENOMINATOR:
            common = 1
            break
    first, count, same = _regular(rows)
    middle = {o: [rows[i][i + o] * common for i in range(first, first + count)] for o in _offsets(rows, first)}
    if same and all(w[0] != 1 for w in middle.values()) and any(w[0] == -1 for w in middle.values()):
        common, middle = -common, {o: [-w[0]] for o, w in middle.items()}
    inner = [(o, float(w[0]) if same else tuple(map(float, w))) for o, w in middle.items()]
    edges = [
        (i, _ones_first([(j, float(w * common)) for j, w in row.items()]))
        for i, row in enumerate(rows)
        if not first <= i < first + count
    ]
    return Matrix(n, scale / common, first, count, _ones_first(inner), tuple(edges), transposed)


def _ones_first(terms: list) -> tuple:
    return tuple(sorted(terms, key=lambda term: (term[1] != 1.0, term[0])))


def _offsets(rows: list[Row], i: int) -> list[int]:
    return [j - i for j in rows[i]]


def _regular(rows: list[Row]) -> tuple[int, int, bool]:
    """The longest run of rows with equal offsets: first, length, and whether the weights are equal too."""
    shapes = [tuple(sorted((j - i, w) for j, w in row.items())) for i, row in enumerate(rows)]
    equal = _longest_run(shapes)
    alike = _longest_run([tuple(o for o, _ in shape) for shape in shapes])
    # A run of equal weights costs less a row: take it unless it leaves out much more than the edges.
    return (*equal, True) if 2 * equal[1] >= alike[1] else (*alike, False)


def _longest_run(items: list) -> tuple[int, int]:
    best, start = (0, 1), 0
    for i in range(1, len(items) + 1):
        if i == len(items) or items[i] != items[start]:
            if i - start > best[1]:
                best = start, i - start
            start = i
    return best
