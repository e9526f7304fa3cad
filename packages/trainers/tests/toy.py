"""A two-group toy on which every law of the loop can be seen: dropout, a buffer, data in memory."""

import torch
from torch import nn

from trainers import InMemory, Length, Optim, Stage


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 5)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x):
        return nn.functional.dropout(self.norm(self.layer(x)), 0.2, self.training)


def groups(seed=0):
    torch.manual_seed(seed)
    return {"encoder": Encoder(), "head": nn.Linear(5, 1), "spare": nn.Linear(2, 2)}


def data(n=11):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n, 3, generator=generator)
    return InMemory({"x": x, "y": x.sum(1, keepdim=True)})


def loss_of(parts, before=lambda progress: None):
    def loss(batch, progress):
        before(progress)
        noise = torch.randn(batch["x"].shape, generator=progress.generator)
        error = parts["head"](parts["encoder"](batch["x"] + 0.1 * noise)) - batch["y"]
        return {"mse": error.square().mean(), "log/error": error.detach().abs().mean()}

    return loss


def stage(parts, name="a", *, groups=("encoder", "head"), steps=6, before=lambda progress: None, **rest):
    rest = {"batch_size": 4, "optim": Optim(lr=1e-2, schedule="cosine", warmup_steps=2)} | rest
    chosen = groups if isinstance(groups, dict) else dict.fromkeys(groups, 1.0)
    return Stage(
        name, chosen, loss_of(parts, before), rest.pop("data", None) or data(), length=Length(steps=steps), **rest
    )


def state(parts):
    return {f"{g}.{k}": v.clone() for g, part in parts.items() for k, v in part.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
