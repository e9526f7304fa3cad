"""What an expert does: a small convolutional operator that proposes a change to a bank of fields.

Fields are (b, c, t, h, w) with c the packed slots of a bank; the condition is one vector a sample. An expert may change
only the channels of its recipe (a fluid expert: velocity, pressure, density), everything else of its proposal is
exactly zero. The last layer starts at zero, so a fresh expert proposes nothing and a model with fresh experts is the
model without them.

Other operators are found by name (`operator`): a recipe may say `spectral` where a package registers that.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["OperatorExpert", "operator"]

OPERATORS = "physexperts.operators"
OWN = "convolution"


class OperatorExpert(nn.Module):
    """Propose dP = M * O(P, c): 3x3x3 convolution, SiLU, depthwise-separable 3x3x3, SiLU, 1x1x1 that starts at zero.

    The condition enters as a per-channel shift of the first layer: the same as concatenating its broadcast to the
    fields with a 1x1x1 kernel for that part, at a fifth of the cost for PILA's widths. Layers and widths are our
    choice.

    References: PILA (Wang et al., 2026), Eq. 5 and 24.

    >>> expert = OperatorExpert(channels=4, cond_dim=3, recipe=[True, True, False, False])
    >>> expert(torch.randn(2, 4, 3, 5, 5), torch.randn(2, 3)).abs().max().item()
    0.0
    """

    recipe: Bool[Tensor, " c"]

    def __init__(
        self, channels: int, cond_dim: int, hidden: int = 128, *, recipe: Sequence[bool] | Tensor | None = None
    ) -> None:
        super().__init__()
        mask = torch.ones(channels, dtype=torch.bool) if recipe is None else torch.as_tensor(recipe).bool()
        if mask.shape != (channels,):
            raise ValueError(f"expected a recipe of {channels} flags, one a channel, got shape {tuple(mask.shape)}")
        self.local = nn.Conv3d(channels, hidden, 3, padding=1)
        self.condition = nn.Linear(cond_dim, hidden, bias=False)
        self.depthwise = nn.Conv3d(hidden, hidden, 3, padding=1, groups=hidden)
        self.pointwise = nn.Conv3d(hidden, hidden, 1)
        self.out = nn.Conv3d(hidden, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(_bias(self.out))
        self.register_buffer("recipe", mask, persistent=False)  # the recipe has one owner: the config

    def forward(
        self, fields: Float[Tensor, "b c t h w"], condition: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b c t h w"]:
        """Propose a change to the fields, zero outside the recipe's channels."""
        x = F.silu(self.local(fields) + self.condition(condition)[:, :, None, None, None])
        x = F.silu(self.pointwise(self.depthwise(x)))
        return self.out(x) * self.recipe[:, None, None, None]


def operator(name: str) -> Callable[..., nn.Module]:
    """Find what makes an operator: "convolution" is `OperatorExpert`, others are registered by installed packages in
    the entry-point group `physexperts.operators` and take the same arguments.

    Raises:
        ValueError: for a name that nobody registers, with those that are known.

    >>> operator("convolution").__name__
    'OperatorExpert'
    """
    if name == OWN:
        return OperatorExpert
    found = entry_points(group=OPERATORS)
    if name not in found.names:
        known = ", ".join([OWN, *sorted(found.names)])
        raise ValueError(
            f"expected an operator among {known}, got {name!r}: install the package that registers it in the"
            f" entry-point group {OPERATORS!r}"
        )
    return found[name].load()


def _bias(layer: nn.Conv3d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
