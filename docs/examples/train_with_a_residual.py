"""Train a small network on the first frame and the walls of a heated plate, without and with the heat equation.

    uv run python docs/examples/train_with_a_residual.py

The network maps (t, y, x) to temperature. The data do not say what happens inside at later times; the law does. The
residual is evaluated on a grid of 9 x 17 x 17 points, with no automatic differentiation of the network with respect to
its inputs.
"""

import torch
from torch import nn

import physfields as pf
from physfields import exact

DIFFUSIVITY = 0.2
GRID, SHAPE = pf.Grid((0.2, 0.2, 0.2)), (9, 17, 17)


def network() -> nn.Module:
    """Three layers of 48."""
    return nn.Sequential(nn.Linear(3, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1))


def train(weight: float, *, steps: int = 300, seed: int = 0) -> float:
    """Train with the residual's weight; return the relative error of what the network never saw."""
    torch.manual_seed(seed)
    at = exact.mesh(GRID, SHAPE, dtype=torch.float32)
    truth = exact.heat_kernel(at, diffusivity=DIFFUSIVITY, age=0.5)["temperature"]
    points = torch.cat(at, dim=1).flatten(2)[0].T - 1.6
    inside = torch.zeros(truth.shape, dtype=torch.bool)
    inside[:, :, 1:, 1:-1, 1:-1] = True
    seen = ~inside.flatten()
    values = truth.flatten()[seen]
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    law, size = pf.Constants(diffusivity=DIFFUSIVITY), truth.square().mean()
    rate = pf.time_derivative(truth, GRID).square().mean()
    for _ in range(steps):
        field = net(points).T.reshape(truth.shape)
        loss = (field.flatten()[seen] - values).square().mean() / size
        if weight:
            heat = pf.residuals.evaluate({"temperature": field}, GRID, ["heat"], constants=law)
            loss = loss + weight * heat["heat.conduction"].loss.sum() / rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        wrong = (net(points).T.reshape(truth.shape) - truth)[inside]
        return float(wrong.square().mean().sqrt() / truth[inside].square().mean().sqrt())


def main() -> None:
    """Print the error inside, without and with the law."""
    torch.set_num_threads(1)
    for weight in (0.0, 0.1):
        errors = [train(weight, seed=seed) for seed in range(3)]
        print(f"residual weight {weight}: relative error {', '.join(f'{e:.2f}' for e in errors)}")


if __name__ == "__main__":
    main()
