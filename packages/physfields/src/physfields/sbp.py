"""Summation by parts: first derivatives D = H^-1 Q with Q + Q^T = diag(-1, 0, ..., 0, 1), so that in the norm H

    sum_i H_i g_i (D f)_i + sum_i H_i (D g)_i f_i = g_n f_n - g_0 f_0

exactly, as the integral does: what leaves through the ends is all that a conservation law loses. H is diagonal and
positive (a quadrature rule of the interior's order); the price is half the order in the edge rows: 1, 2 and 3 for the
orders 2, 4 and 6.

The norm and the interior fix Q up to one number at order 6; it minimises the edge rows' error on x^4 (our choice).
References: Finite element and finite difference methods for hyperbolic PDEs (Kreiss & Scherer, 1974);
Summation by parts for finite difference approximations for d/dx (Strand, 1994).
"""

from fractions import Fraction

from physfields.weights import fd_weights

F = Fraction
_NORM = {
    2: (F(1, 2),),
    4: (F(17, 48), F(59, 48), F(43, 48), F(49, 48)),
    6: (F(13649, 43200), F(12013, 8640), F(2711, 4320), F(5359, 4320), F(7877, 8640), F(43801, 43200)),
}
_FREE = F(141, 200)  # Q[4, 5] at order 6
_CORNER = {  # Q[i, j] for i < j among the edge rows; the rest of Q is antisymmetric or the interior's
    2: {},
    4: {(0, 1): F(59, 96), (0, 2): F(-1, 12), (0, 3): F(-1, 32), (1, 2): F(59, 96), (2, 3): F(59, 96)},
    6: {
        (0, 1): _FREE - F(953, 16200),
        (0, 2): F(715489, 259200) - 4 * _FREE,
        (0, 3): 6 * _FREE - F(62639, 14400),
        (0, 4): F(147127, 51840) - 4 * _FREE,
        (0, 5): _FREE - F(89387, 129600),
        (1, 2): 10 * _FREE - F(57139, 8640),
        (1, 3): F(745733, 51840) - 20 * _FREE,
        (1, 4): 15 * _FREE - F(18343, 1728),
        (1, 5): F(240569, 86400) - 4 * _FREE,
        (2, 3): 20 * _FREE - F(176839, 12960),
        (2, 4): F(242111, 17280) - 20 * _FREE,
        (2, 5): 6 * _FREE - F(182261, 43200),
        (3, 4): 10 * _FREE - F(165041, 25920),
        (3, 5): F(710473, 259200) - 4 * _FREE,
        (4, 5): _FREE,
    },
}


def sbp_length(order: int) -> int:
    """The fewest nodes: the two ends' rows may meet but not overlap."""
    return 2 * len(_NORM[order])


def sbp_norm(order: int, n: int) -> tuple[Fraction, ...]:
    """The diagonal of H in steps: quadrature weights of n nodes.

    >>> [str(w) for w in sbp_norm(2, 4)]
    ['1/2', '1', '1', '1/2']
    """
    edge = _NORM[order]
    if n < 2 * len(edge):
        raise ValueError(f"sbp: order {order} needs at least {2 * len(edge)} nodes, got {n}; lengthen the axis.")
    return (*edge, *(F(1),) * (n - 2 * len(edge)), *reversed(edge))


def sbp_rows(order: int, n: int) -> list[dict[int, Fraction]]:
    """The rows of D on n nodes of unit spacing: column -> weight."""
    norm, reach = sbp_norm(order, n), order // 2
    closed = len(_NORM[order])
    central = {
        o: w for o, w in zip(range(-reach, reach + 1), fd_weights(range(-reach, reach + 1), 1), strict=True) if w
    }

    def q(i: int, j: int) -> Fraction:  # of the left end, with the interior's weights beyond its corner
        if i < closed and j < closed:
            if i == j:
                return F(-1, 2) if i == 0 else F(0)
            return _CORNER[order].get((i, j), F(0)) - _CORNER[order].get((j, i), F(0))
        return central.get(j - i, F(0))

    rows: list[dict[int, Fraction]] = []
    for i in range(n):
        if i < closed:
            row = {j: q(i, j) / norm[i] for j in range(closed + reach)}
        elif i >= n - closed:
            row = {n - 1 - j: -q(n - 1 - i, j) / norm[i] for j in range(closed + reach)}
        else:
            row = {i + o: w for o, w in central.items()}
        rows.append({j: w for j, w in sorted(row.items()) if w})
    return rows
