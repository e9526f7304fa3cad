"""Every operator reaches the order at interior, face, edge and corner rows; polynomials are exact at every row."""

import itertools
import math

import pytest
import torch

import physfields as pf

D = torch.float64
K = {"t": 0.7, "z": 0.6, "y": 0.9, "x": 0.8}  # of slowly varying fields, for the asymptotic range
# The derivatives of sin(phase) come round: D^m sin = sin(phase + m pi / 2), times k^m.


def waves(at, names, shift, *, periodic, count, faster=1.0):
    """`count` plane waves as components, and any derivative of them: f(orders)."""
    k = {name: (1.0 if periodic else faster * K[name]) for name in names}

    def f(**orders):
        parts = []
        for c in range(count):
            sign = [1.0, -1.0, 1.0, -1.0, 1.0, 1.0][c] if periodic else 1.0 - 0.2 * c
            phase, size, m = shift + 0.9 * c, 1.0, sum(orders.values())
            for name, axis in zip(names, at, strict=True):
                wave = k[name] * (sign if name == "x" else 1.0)
                phase = phase + wave * axis
                size = size * wave ** orders.get(name, 0)
            parts.append(size * (phase + m * math.pi / 2).sin())
        return torch.cat(parts, dim=1)

    return f


def product(f, u, i, **orders):
    """D (f u_i) for first derivatives, by the product rule."""
    ((name, _),) = orders.items()
    return f(**{name: 1}) * u()[:, i : i + 1] + f() * u(**{name: 1})[:, i : i + 1]


def convective(f, u, space):
    return sum(u()[:, i : i + 1] * f(**{a: 1}) for i, a in enumerate(space))


def conservative(f, u, space):
    return sum(product(f, u, i, **{a: 1}) for i, a in enumerate(space))


def symmetric(space, make):
    pairs = [(a, a) for a in space] + [(a, b) for i, a in enumerate(space) for b in space[i + 1 :]]
    return torch.cat([make(a, b) for a, b in pairs], dim=1)


def strain(u, space):
    i = {a: n for n, a in enumerate(space)}
    return symmetric(
        space,
        lambda a, b: 0.5 * (u(**{b: 1})[:, i[a] : i[a] + 1] + u(**{a: 1})[:, i[b] : i[b] + 1]),
    )


def tensor_divergence(s, space):
    place = {frozenset((a, b)): n for n, (a, b) in enumerate(pairs_of(space))}
    return torch.cat(
        [sum(s(**{b: 1})[:, (n := place[frozenset((a, b))]) : n + 1] for b in space) for a in space], dim=1
    )


def pairs_of(space):
    return [(a, a) for a in space] + [(a, b) for i, a in enumerate(space) for b in space[i + 1 :]]


def curl(u, space):
    if len(space) == 2:
        return u(x=1)[:, :1] - u(y=1)[:, 1:]
    return torch.cat(
        [u(y=1)[:, 2:] * -1 + u(x=1)[:, 1:2], u(z=1)[:, 2:] - u(x=1)[:, :1], u(y=1)[:, :1] - u(z=1)[:, 1:2]], dim=1
    )


def divergence(space, u):
    return sum(u(**{a: 1})[:, i : i + 1] for i, a in enumerate(space))


def laplacian(f, space):
    return sum(f(**{a: 2}) for a in space)


def both(a, b):
    return {a: 2} if a == b else {a: 1, b: 1}


OPERATORS = {
    # name: (fields as component kinds, operator, truth)
    "gradient": ("1", lambda g, f: pf.gradient(f, g), lambda s, f: torch.stack([f(**{a: 1}) for a in s], 2)),
    "jacobian": ("v", lambda g, u: pf.jacobian(u, g), lambda s, u: torch.stack([u(**{a: 1}) for a in s], 2)),
    "hessian": (
        "1",
        lambda g, f: pf.hessian(f, g),
        lambda s, f: torch.stack([torch.stack([f(**both(a, b)) for b in s], 2) for a in s], 2),
    ),
    "divergence": ("v", lambda g, u: pf.divergence(u, g), divergence),
    "curl": ("v", lambda g, u: pf.curl(u, g), lambda s, u: curl(u, s)),
    "spin": ("v", lambda g, u: pf.spin(u, g), lambda s, u: 0.5 * curl(u, s)),
    "laplacian": ("1", lambda g, f: pf.laplacian(f, g), lambda s, f: laplacian(f, s)),
    "vector_laplacian": ("v", lambda g, u: pf.vector_laplacian(u, g), lambda s, u: laplacian(u, s)),
    "biharmonic": (
        "1",
        lambda g, f: pf.biharmonic(f, g),
        lambda s, f: sum(f(**({a: 4} if a == b else {a: 2, b: 2})) for a in s for b in s),
    ),
    "tensor_divergence": ("s", lambda g, s: pf.tensor_divergence(s, g), lambda s, f: tensor_divergence(f, s)),
    "strain_rate": ("v", lambda g, u: pf.strain_rate(u, g), lambda s, u: strain(u, s)),
    "time_derivative": ("1", lambda g, f: pf.time_derivative(f, g), lambda s, f: f(t=1)),
    "acceleration": ("1", lambda g, f: pf.time_derivative(f, g, n=2), lambda s, f: f(t=2)),
    "mixed": ("1", lambda g, f: pf.partial(f, {"t": 1, "y": 2, "x": 1}, g), lambda s, f: f(t=1, y=2, x=1)),
    "third": ("1", lambda g, f: pf.partial(f, {"x": 3}, g), lambda s, f: f(x=3)),
    "convective": ("1v", lambda g, f, u: pf.advection(f, u, g), lambda s, f, u: convective(f, u, s)),
    "conservative": (
        "1v",
        lambda g, f, u: pf.advection(f, u, g, form="conservative"),
        lambda s, f, u: conservative(f, u, s),
    ),
    "skew": (
        "1v",
        lambda g, f, u: pf.advection(f, u, g, form="skew"),
        lambda s, f, u: 0.5 * (convective(f, u, s) + conservative(f, u, s)),
    ),
    "material_derivative": (
        "1v",
        lambda g, f, u: pf.material_derivative(f, u, g),
        lambda s, f, u: f(t=1) + convective(f, u, s),
    ),
}  # fmt: skip


def errors(name, order, boundary, n, names=("t", "y", "x")):
    """|error| over components and phases at every node: sine and cosine never vanish together, nor their products."""
    kinds, operator, truth = OPERATORS[name]
    periodic, space = boundary == "periodic", names[1:]
    h = 2 * math.pi / n if periodic else 1 / n
    grid = pf.Grid((h,) * len(names), boundary=boundary, order=order)
    at = pf.exact.mesh(grid, (n if periodic else n + 1,) * len(names))
    total = 0
    counts = [{"1": 1, "v": len(space), "s": len(space) * (len(space) + 1) // 2}[kind] for kind in kinds]
    options = {"periodic": periodic, "faster": STIFF.get(name, 1.0)}
    for shifts in itertools.product((0.4, 0.4 + math.pi / 2), repeat=len(kinds)):
        fields = [waves(at, names, s, count=c, **options) for s, c in zip(shifts, counts, strict=True)]
        wrong = operator(grid, *(f() for f in fields)) - truth(space, *fields)
        total = total + wrong.flatten(1, wrong.ndim - len(names) - 1).square().sum(dim=1)[0]
    return total.sqrt()


SIZES = {2: 24, 4: 16, 6: 10}
STIFF = {"biharmonic": 4.0, "mixed": 4.0, "third": 4.0}  # of high order: rounding drowns their error on slower waves


@pytest.mark.parametrize("order", [2, 4, 6])
@pytest.mark.parametrize("name", OPERATORS)
def test_one_sided_operators_reach_the_order_at_interior_face_edge_and_corner(name, order):
    n = {2: 36, 4: 24, 6: 16}[order] if name in STIFF else SIZES[order]
    n += {"curl": 4, "spin": 4, "biharmonic": 8}.get(name, 0) if order == 6 else 0
    coarse, fine = errors(name, order, "one_sided", n), errors(name, order, "one_sided", 2 * n)
    m = n // 2
    rows = {"interior": (m, m, m), "face": (m, 0, m), "edge": (m, 0, n), "corner": (0, 0, 0), "last": (n, n, n)}
    for place, row in rows.items():
        finer = tuple(2 * i for i in row)
        slope = math.log2(coarse[row] / fine[finer])
        if name in ("time_derivative", "acceleration") and place in ("face", "edge"):
            assert slope > order - 0.15  # time is interior there
            continue
        assert slope == pytest.approx(order, abs=0.15), place


@pytest.mark.parametrize("order", [2, 4, 6])
@pytest.mark.parametrize("name", OPERATORS)
def test_periodic_operators_reach_the_order_at_every_kind_of_row(name, order):
    n = {2: 20, 4: 20, 6: 18}[order]
    coarse, fine = errors(name, order, "periodic", n), errors(name, order, "periodic", 2 * n)
    m = n // 2
    for row in ((m, m, m), (m, 0, m), (m, 0, n - 1), (0, 0, 0), (n - 1, n - 1, n - 1)):
        near = tuple(2 * i for i in row)
        assert math.log2(coarse[row] / fine[near]) == pytest.approx(order, abs=0.15)


SPATIAL = ["gradient", "divergence", "curl", "laplacian", "strain_rate", "tensor_divergence", "hessian", "convective"]


@pytest.mark.parametrize("name", SPATIAL)
def test_operators_in_space_reach_the_order_at_interior_and_corner(name):
    n, names = 8, ("t", "z", "y", "x")
    coarse, fine = errors(name, 4, "one_sided", n, names), errors(name, 4, "one_sided", 2 * n, names)
    for row in ((4,) * 4, (0,) * 4, (n,) * 4):
        assert math.log2(coarse[row] / fine[tuple(2 * i for i in row)]) == pytest.approx(4, abs=0.3)  # 9 nodes


@pytest.mark.parametrize("order", [2, 4, 6])
@pytest.mark.parametrize("m", [1, 2, 3, 4])
@pytest.mark.parametrize("axis", ["t", "y", "x"])
def test_one_sided_rows_are_exact_for_polynomials_below_order_plus_m(axis, m, order):
    n = order + m + 3
    x = torch.arange(float(n), dtype=D) - n // 2
    for degree in range(order + m):
        truth = math.perm(degree, m) * x ** max(degree - m, 0)
        f = (x**degree).reshape([1, 1] + [n if a == axis else 1 for a in "tyx"])
        got = pf.partial(f, {axis: m}, pf.Grid(order=order)).flatten()
        torch.testing.assert_close(got, truth, rtol=1e-9, atol=1e-12 * (n / 2) ** degree + 1e-11)


@pytest.mark.parametrize("order", [2, 4])
def test_upwind_advection_leans_against_the_flow_and_is_one_order_lower(order):
    def error(n, speed):
        x = torch.arange(n, dtype=D) * (2 * math.pi / n)
        f = x.sin().expand(1, 1, 1, 1, n)
        grid = pf.Grid((1.0, 1.0, 2 * math.pi / n), boundary=("one_sided", "periodic", "periodic"), order=order,
                       singleton="zero")  # fmt: skip
        u = torch.stack([torch.zeros(n, dtype=D), torch.full((n,), speed, dtype=D)])[None, :, None, None]
        return pf.advection(f, u, grid, form="upwind").flatten() - speed * x.cos()

    for speed in (0.7, -0.7):
        slope = math.log2(error(40, speed).abs().max() / error(80, speed).abs().max())
        assert slope == pytest.approx(order - 1, abs=0.15)
        x = torch.arange(40, dtype=D) * (2 * math.pi / 40)
        assert (error(40, speed) * x.sin()).sum() > 0  # it damps: the error opposes growth of f


def test_first_order_upwind_reads_only_the_node_it_comes_from():
    f = torch.zeros(1, 1, 1, 7, 7, dtype=D)
    f[..., 3] = 1.0
    grid = pf.Grid(singleton="zero")
    for speed, expected in ((1.0, [0, 0, 0, 1, -1, 0, 0]), (-1.0, [0, 0, -1, 1, 0, 0, 0])):
        u = torch.stack([torch.zeros(1, 7, 7, dtype=D), torch.full((1, 7, 7), speed, dtype=D)])[None]
        got = pf.advection(f, u, grid, form="upwind")[0, 0, 0, 3]
        torch.testing.assert_close(got[1:-1], torch.tensor(expected, dtype=D)[1:-1])
