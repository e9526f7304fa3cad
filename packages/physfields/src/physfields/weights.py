"""Finite-difference weights as exact rationals.

`fd_weights(offsets, m)` are the numbers w with sum_k w_k f(x + s_k) = f^(m)(x), exact for every polynomial of degree
below the number of points. They are computed with `fractions.Fraction`, so the only rounding is the last, to a float;
a float offset enters as the exact binary number that it is.

References: Calculation of weights in finite difference formulas (Fornberg, 1998).
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache


def fd_weights(offsets: Sequence[int | float | Fraction], m: int) -> tuple[Fraction, ...]:
    """Weights of the m-th derivative at 0 from values at `offsets` (distinct, in grid units).

    >>> [str(w) for w in fd_weights((-1, 0, 1), 2)]
    ['1', '-2', '1']
    >>> [str(w) for w in fd_weights((0, 1, 2), 1)]
    ['-3/2', '2', '-1/2']
    """
    points = tuple(Fraction(s) for s in offsets)
    if m < 0 or len(points) <= m:
        raise ValueError(f"fd_weights: expected more than m = {m} >= 0 points, got {len(points)}; add points.")
    if len(set(points)) != len(points):
        raise ValueError(f"fd_weights: expected distinct offsets, got {tuple(offsets)}; remove the repeated ones.")
    return _weights(points, m)


@lru_cache(maxsize=4096)
def _weights(points: tuple[Fraction, ...], m: int) -> tuple[Fraction, ...]:
    # Fornberg's recursion: weights of derivatives 0..m, one more point a round.
    table = [[Fraction(0)] * len(points) for _ in range(m + 1)]
    table[0][0] = Fraction(1)
    c1 = Fraction(1)
    for i in range(1, len(points)):
        c2 = Fraction(1)
        before = [row[i - 1] for row in table]
        for j in range(i):
            c3 = points[i] - points[j]
            c2 *= c3
            for k in range(min(i, m), -1, -1):
                lower = k * table[k - 1][j] if k else Fraction(0)
                table[k][j] = (points[i] * table[k][j] - lower) / c3
        for k in range(min(i, m), -1, -1):
            lower = k * before[k - 1] if k else Fraction(0)
            table[k][i] = c1 / c2 * (lower - points[i - 1] * before[k])
        c1 = c2
    return tuple(table[m])


CENTRAL: dict[tuple[int, int], tuple[float, ...]] = {
    (p, m): tuple(map(float, fd_weights(range(-(p // 2), p // 2 + 1), m))) for p in (2, 4, 6) for m in (1, 2)
}
"""The central stencils by order and derivative, as numbers that compilers can hold."""
