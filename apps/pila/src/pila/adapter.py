"""PILA on a frozen generator: recover the fields of its estimate, let routed experts correct them, decode a change of
its velocity.

One call per noise level: x0 = x_s - sigma v -> E_phi -> AFE -> bank P -> router -> operators -> P^ = P + sum_k pi_k
dP_k -> D_psi -> g(sigma) dv. The adapter sees latents and velocities only, never the blocks of the model, so one
bundle serves every model with the same latent space. A fresh adapter returns exactly zero.

`anatomy` gives everything that happened on the way, for losses and for pictures; `correction` is what sampling calls.

References: PILA (Wang et al., 2026), Eq. 1-10.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

import physfields as pf
from backbones import Backbone, Spec, Text, paths
from physexperts import MECHANISMS, LabelPriorRouter, Pairs, Routing, UniformRouter
from physfields.residuals import PILA
from pila.afe import AFE, Recovered
from pila.bank import CHANNELS
from pila.condition import Condition
from pila.config import Recipe
from pila.decoder import Decoder
from pila.encoder import Encoder
from pila.gate import gate
from pila.labels import multi_hot
from pila.operators import Operators

__all__ = ["Anatomy", "PilaAdapter"]


@dataclass(frozen=True)
class Anatomy:
    """What the adapter did to one batch: estimate, fields, routing, proposals of the experts, correction (already
    gated).
    """

    x0: Float[Tensor, "b c t h w"]
    recovered: Recovered
    condition: Float[Tensor, "b d"]
    routing: Routing
    proposals: Pairs
    refined: Float[Tensor, "b 32 t h w"]
    correction: Float[Tensor, "b c t h w"]
    velocity: Float[Tensor, "b c t h w"]


class PilaAdapter(nn.Module):
    """The trainable part of PILA for one latent space."""

    kind = "pila"

    def __init__(self, spec: Spec, recipe: Recipe) -> None:
        super().__init__()
        self.spec, self.recipe = spec, recipe
        net, route = recipe.network, recipe.routing
        self.encoder = Encoder(
            spec.latent.channels, width=net.width, blocks=net.blocks, groups=net.groups, frequencies=net.frequencies
        )
        self.afe = AFE(
            net.width,
            width=net.head_width,
            density_floor=recipe.anchors.density_floor,
            pressure_scale=recipe.anchors.pressure_scale,
            shear_scale=recipe.anchors.shear_scale,
            mode=recipe.anchors.mode,
        )
        self.condition = Condition(
            text=spec.text_dim, labels=len(MECHANISMS), width=net.condition_width, frequencies=net.frequencies
        )
        self.router = (
            UniformRouter(len(MECHANISMS))
            if route.mode == "uniform"
            else LabelPriorRouter(
                net.condition_width,
                len(MECHANISMS),
                route.k,
                prior_strength=route.prior_strength,
                temperature=route.temperature,
            )
        )
        self.operators = Operators(
            condition=net.condition_width,
            hidden=net.operator_width,
            residuals=len(PILA),
            shared=route.operators == "shared",
            kind=net.operator,
        )
        self.decoder = Decoder(
            bank=CHANNELS, channels=spec.latent.channels, condition=net.condition_width, width=net.width
        )
        self.labels: Tensor | None = None  # of the prompts that are being sampled
        self.sigma_range = (0.0, 1.0)  # where sampling is corrected
        self.origin: dict[str, Any] | None = None  # of its weights: hash, backbone, steps
        self.watch: Callable[[float, Anatomy], None] | None = None  # sees every anatomy of a sampling

    @classmethod
    def from_bundle(cls, bundle: Any, backbone: Backbone, *, recipe: Recipe | None = None) -> "PilaAdapter":
        """Build the adapter of a trained bundle for a backbone that it fits; `recipe` replaces the one it was trained
        with.
        """
        adapter = cls(backbone.spec, recipe or Recipe.model_validate(bundle.meta["config"]))
        for name, module in adapter.groups().items():
            module.load_state_dict(bundle.tensors.get(name, {}))
        adapter.origin = bundle.origin
        return adapter.to(next(backbone.transformer.parameters()).device).eval()

    def groups(self) -> dict[str, nn.Module]:
        """The parts that stages name. `router` has no weights when routing is uniform."""
        return {
            "encoder": self.encoder,
            "afe": self.afe,
            "condition": self.condition,
            "router": self.router,
            "operators": self.operators,
            "decoder": self.decoder,
        }

    def grid(self, latents: int) -> pf.Grid:
        """The grid of a clip of so many latents: their true times, and one latent pixel."""
        frames = (latents - 1) * self.spec.time.stride + 1
        return _grid(tuple(self.spec.time.latent_times(frames).tolist()), self.recipe.anchors.order)

    def recover(
        self, x0: Float[Tensor, "b c t h w"], sigma: Float[Tensor, " b"], *, phase: str = "wave"
    ) -> tuple[Float[Tensor, "b d t h w"], Recovered]:
        """Features and fields of an estimate of the clean latent (Eq. 2, 3)."""
        features = self.encoder(x0, sigma)
        return features, self.afe(features, self.grid(x0.shape[2]), phase)

    def anatomy(
        self,
        x_s: Float[Tensor, "b c t h w"],
        velocity: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, "..."],
        text: Text,
        labels: Float[Tensor, "b 8"],
        *,
        warmth: float = 1.0,
    ) -> Anatomy:
        """Run the whole adapter; `warmth` in [0, 1] scales the condition and the label prior while they are warmed up.

        `sigma` is one number a sample, or a map that broadcasts over the latent (0 on a clean prefix): the noisiest
        point is then the level that encoder, condition and gate see.
        """
        x0 = paths.to_x0(x_s, velocity, sigma).float()
        level = sigma.reshape(len(sigma), -1).amax(1).float()
        _, recovered = self.recover(x0, level)
        c = warmth * self.condition(text.features, text.mask, labels, level)
        routing = self.router(c, labels, prior_scale=warmth)
        delta, proposals = self.operators(recovered.bank, routing, c)
        refined = recovered.bank + delta
        seen = recovered.scaffold if self.recipe.correct == "encoder_only" else refined
        if self.recipe.correct == "none":
            correction = torch.zeros_like(velocity)
        else:
            g = paths.spread(gate(level, self.recipe.network.gate_floor), velocity)
            correction = g * self.decoder(seen, c, velocity.float())
        return Anatomy(
            x0=x0,
            recovered=recovered,
            condition=c,
            routing=routing,
            proposals=proposals,
            refined=refined,
            correction=correction,
            velocity=velocity + correction,
        )

    def prepare(self, prompts: list[str], text: Text) -> None:
        """Read the mechanisms out of the prompts that are about to be sampled."""
        how = "none" if self.recipe.data.labels == "none" else self.recipe.sampling.labels
        self.labels = multi_hot(
            prompts, how=how, parser=self.recipe.parser, shuffled=self.recipe.data.labels == "random"
        ).to(text.features.device)

    def correction(
        self,
        x_s: Float[Tensor, "b c t h w"],
        v: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, "..."],
        text: Text,
    ) -> Float[Tensor, "b c t h w"]:
        """What to add to the flow velocity of the frozen model (Eq. 10); zero outside `sigma_range`."""
        low, high = self.sigma_range
        if not low <= float(sigma.max()) <= high:
            return torch.zeros_like(v)
        labels = self.labels
        if labels is None or len(labels) != len(x_s):
            got = "none" if labels is None else str(len(labels))
            raise ValueError(f"expected labels of {len(x_s)} prompts, got {got}; call `prepare(prompts, text)` first")
        anatomy = self.anatomy(x_s, v, sigma, text, labels)
        if self.watch is not None:
            self.watch(float(sigma.max()), anatomy)
        return anatomy.correction.to(v.dtype)


@lru_cache(maxsize=32)
def _grid(times: tuple[float, ...], order: int) -> pf.Grid:
    return pf.Grid.from_latent_times(times, order=order)
