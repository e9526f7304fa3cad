"""Draw the pictures of the physfields pages: uv run --with matplotlib python docs/examples/physfields_pictures.py"""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt

import physfields as pf
from physfields import exact

OUT = Path(__file__).parents[1] / "images" / "physfields"
D = torch.float64


def panel(axes, values, title, *, signed=True):
    """One field as a picture with its range in the title."""
    top = float(values.abs().max())
    axes.imshow(values, cmap="RdBu_r" if signed else "viridis", vmin=-top if signed else 0, vmax=top)
    axes.set_title(f"{title}\n{'±' if signed else 'to '}{top:.2g}", fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def save(figure, name):
    """Write a small PNG."""
    figure.savefig(OUT / f"{name}.png", dpi=72)
    plt.close(figure)


def operators():
    """A vortex beside a source, and what the operators say of it."""
    n = 48
    grid = pf.Grid((1.0, 6 / n, 6 / n), order=4, singleton="zero")
    _, y, x = exact.mesh(grid, (1, n, n))
    turn = exact.lamb_oseen((0 * x, y, x), centre=(3.0, 2.0))["velocity"]
    away = torch.cat([y - 3.0, x - 4.4], dim=1) * (-((y - 3.0) ** 2 + (x - 4.4) ** 2) * 2).exp()
    u = turn + away
    figure, axes = plt.subplots(1, 5, layout="constrained", figsize=(11, 2.7))
    speed = u.square().sum(dim=1).sqrt()[0, 0]
    panel(axes[0], speed, "speed |u|", signed=False)
    s = 5
    axes[0].quiver(range(0, n, s), range(0, n, s), u[0, 1, 0, ::s, ::s], -u[0, 0, 0, ::s, ::s], color="w")
    panel(axes[1], pf.divergence(u, grid)[0, 0, 0], "divergence")
    panel(axes[2], pf.curl(u, grid)[0, 0, 0], "curl (x towards y)")
    strain = pf.strain_rate(u, grid)[0, :, 0]
    size = (strain[0] ** 2 + strain[1] ** 2 + 2 * strain[2] ** 2).sqrt()
    panel(axes[3], size, "strain rate |E|", signed=False)
    panel(axes[4], pf.laplacian(u, grid)[0, 0, 0], "Laplacian of u_y")
    save(figure, "operators")


def boundaries():
    """Error of a first derivative at the edge row against the number of cells, for each boundary."""
    figure, axes = plt.subplots(1, 2, layout="constrained", figsize=(8, 3), sharey=True)
    sizes = [16, 32, 64, 128, 256]
    for axis, order in zip(axes, (2, 4), strict=True):
        for rule in ("one_sided", "sbp", "replicate", "reflect", "zero", "periodic"):
            errors = []
            for n in sizes:
                x = torch.arange(n + 1, dtype=D) / n
                f = (2 * x + 0.5).sin().expand(1, 1, 1, 1, n + 1)
                grid = pf.Grid((1.0, 1.0, 1 / n), boundary=("one_sided", "one_sided", rule), order=order)
                errors.append(abs(float(pf.partial(f, {"x": 1}, grid)[..., 0]) - 2 * math.cos(0.5)))
            dashed = ":" if rule == "reflect" else "-"
            axis.loglog(sizes, errors, dashed, marker="o", markersize=3, label=rule)
        axis.set_title(f"order {order}: |error| of D at the edge row", fontsize=9)
        axis.set_xlabel("cells")
        axis.set_xticks(sizes, [str(n) for n in sizes])
        axis.minorticks_off()
    axes[1].legend(fontsize=7)
    save(figure, "boundaries")


def kinematics():
    """A checkerboard under three differences, and uneven times taken for even ones."""
    figure, axes = plt.subplots(1, 4, layout="constrained", figsize=(10, 2.6))
    i = torch.arange(12)
    board = ((-1.0) ** (i[:, None] + i)).to(D)[None, None, None]
    grid = pf.Grid(1.0, singleton="zero")
    panel(axes[0], board[0, 0, 0], "a checkerboard f")
    flat = pf.partial(board, {"x": 1}, grid)[0, 0, 0, 1:-1, 1:-1]
    axes[1].imshow(flat, cmap="RdBu_r", vmin=-1, vmax=1)
    axes[1].set_title(f"central D_x f\nexactly {float(flat.abs().max()):.0f}", fontsize=9)
    axes[1].set_xticks([])
    axes[1].set_yticks([])
    panel(axes[2], pf.face_difference(board, "x", grid)[0, 0, 0], "face difference")
    times = torch.tensor([math.floor(k * 1.5 + 0.5) / 24 for k in range(12)], dtype=D)
    d = (30 * times).reshape(1, 1, -1, 1, 1)
    for label, steps in (("taken for 16 fps", 1 / 16), ("true times", times)):
        a = pf.time_derivative(d, pf.Grid((steps, 1.0, 1.0)), n=2).flatten()
        axes[3].plot(a, marker="o", markersize=3, label=label)
    axes[3].set_title("D_tt of uniform motion,\n24 fps picked for 16", fontsize=9)
    axes[3].legend(fontsize=7)
    save(figure, "kinematics")


def residuals():
    """The momentum residual of a vortex for three viscosities."""
    n = 40
    grid = pf.Grid((0.1, 4 / n, 4 / n), order=4)
    fields = exact.lamb_oseen(exact.mesh(grid, (9, n, n)), centre=(2.0, 2.0), viscosity=0.1, age=1.0)
    figure, axes = plt.subplots(1, 4, layout="constrained", figsize=(10, 2.7))
    panel(axes[0], fields["velocity"][0, 0, 4], "u_y of a vortex, mu = 0.1")
    for axis, mu in zip(axes[1:], (0.02, 0.1, 0.2), strict=True):
        found = pf.residuals.evaluate(fields, grid, ["navier_stokes"], constants=pf.Constants(viscosity=mu))
        r = found["navier_stokes.incompressible_momentum"]
        axis.imshow(r.field["node"][0, 0, 4], cmap="RdBu_r", vmin=-0.1, vmax=0.1)
        axis.set_title(f"mu = {mu}: RMS over\nlargest term {float(r.loss.sqrt() / r.scale):.1g}", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    save(figure, "residuals")


def poisson():
    """A random flow on a torus and the two parts of its Helmholtz split."""
    n = 48
    grid = pf.Grid(1.0, boundary=("one_sided", "periodic", "periodic"), singleton="zero")
    noise = torch.randn(1, 2, 1, n, n, dtype=D, generator=torch.Generator().manual_seed(2))
    u = pf.solve_poisson(pf.solve_poisson(noise, grid), grid)
    parts = pf.helmholtz_split(u, grid)
    figure, axes = plt.subplots(1, 3, layout="constrained", figsize=(8, 2.9))
    for axis, name, v in (
        (axes[0], "u", u),
        (axes[1], "compressive: curl 0", parts.compressive),
        (axes[2], "solenoidal: div 0", parts.solenoidal),
    ):
        panel(axis, v.square().sum(dim=1).sqrt()[0, 0], f"|{name}|" if name == "u" else name, signed=False)
        s = 4
        axis.quiver(range(0, n, s), range(0, n, s), v[0, 1, 0, ::s, ::s], -v[0, 0, 0, ::s, ::s], color="w")
    save(figure, "helmholtz")


def solutions():
    """Eight exact solutions in one frame."""
    n = 48
    at = exact.mesh(pf.Grid((1.0, 3.2 / n, 3.2 / n)), (1, n, n))
    wide = exact.mesh(pf.Grid((1.0, 6.4 / n, 6.4 / n)), (1, n, n))
    shown = (
        ("taylor_green: v_y", exact.taylor_green(wide)["velocity"][0, 0, 0]),
        ("lamb_oseen: p", exact.lamb_oseen(at)["pressure"][0, 0, 0]),
        ("isentropic_vortex: rho - 1", exact.isentropic_vortex(at)["density"][0, 0, 0] - 1),
        ("shallow_vortex: h - 1", exact.shallow_vortex(at)["height"][0, 0, 0] - 1),
        ("burgers_wave: v_x", exact.burgers_wave((at[0], at[1] - 1.6, at[2] - 1.6))["velocity"][0, 1, 0]),
        ("heat_kernel: T", exact.heat_kernel(at)["temperature"][0, 0, 0]),
        ("stefan: T", exact.stefan(at)["temperature"][0, 0, 0]),
        ("plane_elastic_wave: d_y", exact.plane_elastic_wave(wide)["displacement"][0, 0, 0]),
        ("maxwell_plane_wave: H_z", exact.maxwell_plane_wave(wide)["magnetic"][0, 0, 0]),
        ("separated_phases: c", exact.separated_phases(at)["concentration"][0, 0, 0]),
    )
    figure, axes = plt.subplots(2, 5, layout="constrained", figsize=(10, 4.6))
    for axis, (title, values) in zip(axes.flat, shown, strict=True):
        panel(axis, values, title)
    save(figure, "exact")


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for draw in (operators, boundaries, kinematics, residuals, poisson, solutions):
        draw()
