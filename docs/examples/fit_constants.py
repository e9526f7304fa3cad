"""Fit viscosity, wave speed and diffusivity of the simulated world from its fields alone: least squares of a residual.

    uv run python docs/examples/fit_constants.py

Each clip is one number to find; the residual is the law, its constant carries a gradient, and Newton's method on the
mean square finds it (two steps at most matter: the square is quadratic in the constant or nearly so).
"""

import torch

import physfields as pf
from physworld import simulate

SCALE = 2
LAWS = {
    # mechanism: (law, constant, parameter of the clip, scenarios, slots)
    "fluid": ("navier_stokes.vorticity_transport", "viscosity", "nu", ("vortex", "pair"), ("velocity", "pressure")),
    "optical": ("wave.propagation", "wave_speed", "c", ("ripple",), ("wave",)),
    "thermal": ("heat.conduction", "diffusivity", "D", ("spots",), ("temperature",)),
}


def fields_of(clip, slots):
    """Fields of a clip as (1, c, t, y, x) in double precision."""
    return {s: torch.from_numpy(clip.fields[s].astype("float64")).permute(3, 0, 1, 2)[None] for s in slots}


def fit(clip, mechanism: str, *, steps: int = 8) -> float:
    """The constant that makes the law's mean square least, by Newton's method from a bad guess."""
    key, constant, _, _, slots = LAWS[mechanism]
    walls = "periodic" if mechanism == "fluid" else "replicate"  # a periodic box; plates and ponds without flux
    grid = pf.Grid((1.0, 1 / SCALE, 1 / SCALE), boundary=("one_sided", walls, walls), order=(6, 4, 4))
    fields, guess = fields_of(clip, slots), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        found = pf.residuals.evaluate(fields, grid, [key.split(".")[0]], constants=pf.Constants(**{constant: guess}))
        (slope,) = torch.autograd.grad(found[key].loss.sum(), guess, create_graph=True)
        (bend,) = torch.autograd.grad(slope, guess)
        step = slope / bend if bend > 0 else slope.sign() * 0.1
        guess = (guess - step.clamp(-0.3, 0.3)).detach().requires_grad_()
    return float(guess.detach())


def main() -> None:
    """Print what was fitted beside what the clip was made with."""
    torch.set_num_threads(1)
    print(f"{'mechanism':10} {'constant':12} {'seed':>4} {'true':>7} {'fitted':>8}")
    for mechanism, (_, constant, parameter, scenarios, _) in LAWS.items():
        seeds = [s for s in range(24) if simulate(mechanism, s, split="test").params["scenario"] in scenarios][:4]
        for seed in seeds:
            clip = simulate(mechanism, seed, split="test", scale=SCALE)
            print(f"{mechanism:10} {constant:12} {seed:4d} {clip.params[parameter]:7.3f} {fit(clip, mechanism):8.4f}")


if __name__ == "__main__":
    main()
