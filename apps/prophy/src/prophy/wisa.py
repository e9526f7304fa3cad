"""The baseline WISA: LoRA on the backbone, and after its last block attention whose heads belong to categories.

Categories gate the heads of their experts (present 1, absent a floor; some are flipped while training), quantities
(densities, times, temperatures) shift the modulation, and a learnable token in front of the video is read by a
classifier of the categories. A fresh adapter changes nothing, bit for bit.

At inference physics is a third branch of guidance: v = v_0 + g (v_text - v_0) + p (v_phys - v_text), where v_text is
the same forward without categories and quantities. Both come out of one pass, because physics acts after the last
block: the two last steps differ and are mixed at the model's output.

References: WISA (Wang et al., 2025). Where its text and its code differ, the code; the random flips, which that code
also draws at inference, belong to training here. Our choice: the sizes for a tiny backbone, AdaLN from the quantities
and the time embedding of the backbone by one linear layer, labels from the words of the prompt where no annotation is
given.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backbones import Backbone, BlockStack, Call, Text, Tokens, blocks_of
from physexperts import FloorGate, HeadExperts
from prophy.adapter import Seen, load
from prophy.config import Recipe, Wisa
from prophy.labels import names, said_in
from prophy.lora import LoraBlocks
from prophy.quantities import COUNT

__all__ = ["PhysicalAttention", "WisaAdapter", "classifier_weight"]


@dataclass
class State:
    """What a forward was asked: categories and quantities row by row, and which rows are the unconditional ones."""

    labels: Float[Tensor, "b L"]
    quantities: Float[Tensor, "b q"]
    known: Float[Tensor, "b"]


class PhysicalAttention(nn.Module):
    """AdaLN, attention by category, gated residual; a classifier token in front.

    >>> block = PhysicalAttention(dim=16, time=8, labels=3, wisa=Wisa(head_dim=4, frequencies=2, bottleneck=4))
    >>> h, t = torch.randn(2, 5, 16), torch.randn(2, 8)
    >>> out, logits = block(h, t, torch.ones(2, 3), torch.zeros(2, 18))
    >>> torch.equal(out, h), logits.shape
    (True, torch.Size([2, 3]))
    """

    def __init__(self, *, dim: int, time: int, labels: int, wisa: Wisa) -> None:
        super().__init__()
        self.frequencies = wisa.frequencies
        self.quantities = nn.Sequential(
            nn.Linear(COUNT * 2 * wisa.frequencies, wisa.bottleneck), nn.SiLU(), nn.Linear(wisa.bottleneck, dim)
        )
        self.time = nn.Linear(time, dim)
        self.modulation = nn.Linear(dim, 3 * dim)
        self.gates = FloorGate(wisa.floor, wisa.flip)
        self.attention = HeadExperts(dim, labels, head_dim=wisa.head_dim, heads=wisa.heads)
        self.token = nn.Parameter(0.02 * torch.randn(dim))
        self.classifier = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, labels))

    def forward(
        self,
        h: Float[Tensor, "b n d"],
        time: Float[Tensor, "b e"],
        labels: Float[Tensor, "b L"],
        quantities: Float[Tensor, "b q"],
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b L"]]:
        """Attend among the tokens by category; the classifier's logits come from its own token."""
        condition = self.time(time) + self.quantities(_waves(quantities, self.frequencies))
        shift, scale, gate = self.modulation(nn.functional.silu(condition))[:, None].chunk(3, -1)
        normed = nn.functional.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift
        tokens = torch.cat([self.token.expand(len(h), 1, -1), normed], 1)
        said = self.attention(tokens, self.gates(labels))
        # Its output layer starts at zero: the classifier reads the token before and after it was attended to.
        return h + (1 + gate) * said[:, 1:], self.classifier(self.token + said[:, 0] + normed.mean(1))


class WisaAdapter(nn.Module):
    """LoRA on all blocks and physical attention after the last, for one backbone."""

    kind = "wisa"
    needs_blocks = True

    def __init__(self, backbone: Any, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        stack = blocks_of(backbone.transformer)
        b = recipe.branch
        self.lora = LoraBlocks(stack, rank=b.lora_rank, alpha=b.lora_alpha, targets=b.lora_targets)
        labels = len(names(recipe.data.vocabulary))
        self.physics = PhysicalAttention(dim=stack.spec.dim, time=_time_width(stack), labels=labels, wisa=recipe.wisa)
        self.labels: Tensor | None = None  # of the prompts that are being sampled
        self.quantities: Tensor | None = None
        self.annotated = False  # they were given, not read
        self.told: State | None = None  # in training: what the batch says
        self.logits: Tensor | None = None
        self.inverted = False
        self.watch: Any = None
        self.seen: Seen | None = None
        self.origin: dict[str, Any] | None = None

    @classmethod
    def from_bundle(cls, bundle: Any, backbone: Backbone, *, recipe: Recipe | None = None) -> "WisaAdapter":
        """Build the adapter of a trained bundle beside its backbone."""
        adapter = cls(backbone, recipe or Recipe.model_validate(bundle.meta["config"]))
        load(adapter, bundle)
        return adapter.to(next(backbone.transformer.parameters()).device).eval()

    def groups(self) -> dict[str, nn.Module]:
        """The parts that a stage trains and a bundle keeps."""
        return {"lora": self.lora, "physics": self.physics}

    def rates(self) -> dict[str, float]:
        """What multiplies the learning rate of each group."""
        return dict.fromkeys(self.groups(), 1.0)

    def prepare(self, prompts: list[str], text: Text) -> None:
        """Read the categories out of the prompts, unless `annotate` gave them."""
        if not self.annotated:
            found = [said_in(prompt, self.recipe.data.vocabulary) for prompt in prompts]
            self.labels, self.quantities = torch.stack(found), torch.zeros(len(prompts), COUNT)

    def annotate(self, labels: Float[Tensor, "b L"] | None, quantities: Float[Tensor, "b q"] | None = None) -> None:
        """Say the categories and quantities of the prompts that will be sampled (None: read them from the words)."""
        self.annotated = labels is not None
        self.labels = labels
        self.quantities = torch.zeros(len(labels), COUNT) if labels is not None and quantities is None else quantities

    def tell(self, batch: Mapping[str, Any], generator: torch.Generator) -> None:
        """Take a training batch's categories and quantities, each left out of some rows."""
        share, n = self.recipe.wisa.dropout, len(batch["labels"])
        kept = (torch.rand(2, n, 1, generator=generator) >= share).to(batch["labels"])
        self.told = State(batch["labels"] * kept[0], batch["quantities"] * kept[1], kept[0, :, 0])

    def begin(self, call: Call, tokens: Tokens, stack: BlockStack) -> State:
        """Find what each row was told: the batch's in training, the prompts' in the conditional rows of a sampling."""
        self.seen, n = Seen(call.sigma, call.branch_rows), len(call.x_s)
        if self.told is not None:
            told, self.told = self.told, None
            return told
        width = len(names(self.recipe.data.vocabulary))
        state = State(call.x_s.new_zeros(n, width), call.x_s.new_zeros(n, COUNT), call.x_s.new_zeros(n))
        rows = call.branch_rows.get("cond")
        if rows is not None and self.labels is not None and self.quantities is not None:
            state.labels[rows], state.quantities[rows] = self.labels.to(call.x_s), self.quantities.to(call.x_s)
            state.known[rows] = 1.0
        return state

    def block(self, k: int, tokens: Tokens, state: State, stack: BlockStack) -> tuple[Tokens, State]:
        """Run block k with LoRA."""
        return stack.block(k, tokens, module=self.lora.shadows[k]), state

    def after_block(self, k: int, tokens: Tokens, state: State, stack: BlockStack) -> tuple[Tokens, State]:
        """Attend by category after the last block; while sampling, also without physics, and mix the two outputs."""
        if k != len(stack) - 1:
            return tokens, state
        time = tokens.temb.float()
        time = time if time.ndim == 2 else time.mean(1)
        h = tokens.h.float()
        out, self.logits = self.physics(h, time, state.labels, state.quantities)
        physical = replace(tokens, h=out.to(tokens.h.dtype))
        if self.training or not bool(state.known.any()):
            return physical, state
        plain, _ = self.physics(h, time, torch.zeros_like(state.labels), torch.zeros_like(state.quantities))
        without = replace(tokens, h=plain.to(tokens.h.dtype))
        weight = self.recipe.wisa.guidance / self.recipe.sampling.guidance  # the pipeline multiplies by its guidance
        end = stack.end

        def mixed(s: Tokens) -> Tensor:
            text = end(replace(s, h=without.h))
            return text + weight * (end(s) - text)

        stack.end = mixed  # of this forward alone: a stack is made for each
        if self.watch is not None and self.seen is not None:
            self.watch(self.seen)
        return physical, state

    def terms(self, batch: Mapping[str, Any], labels: Float[Tensor, "b L"]) -> dict[str, Tensor]:
        """The classifier's loss under WISA's weight, which keeps its gradient in bounds."""
        assert self.logits is not None
        loss = nn.functional.binary_cross_entropy_with_logits(self.logits, batch["labels"])
        return {"classifier": classifier_weight(loss)}


def classifier_weight(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """0.10 (1 + a) / (1 + |a|) where a > 1, else 0.05 |a| (1 + a) / (1 + |a|), with |a| held constant.

    >>> round(classifier_weight(torch.tensor(3.0)).item(), 3), round(classifier_weight(torch.tensor(0.5)).item(), 3)
    (0.1, 0.025)
    """
    held = loss.detach()
    size = torch.where(held > 1, torch.full_like(held, 0.1), 0.05 * held)
    return size * (1 + loss) / (1 + held)


def _waves(values: Float[Tensor, "b q"], frequencies: int) -> Float[Tensor, "b _"]:
    """Sines and cosines of each number at octaves."""
    angles = values[..., None] * 2.0 ** torch.arange(frequencies, device=values.device)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(1)


def _time_width(stack: BlockStack) -> int:
    """The width of a stack's time embedding `temb`."""
    with suppress(AttributeError):
        return stack.transformer.config.time_embed_dim
    return stack.spec.dim
