"""ProPhy beside a frozen generator: a physical branch with semantic experts at its entrance and refinement experts at
its end.

One forward: SEB shifts the latent by the prompt's basis maps; the shifted latent, embedded by the frozen patch
embedding, runs through the physical blocks, each of which adds to the backbone's stream after its paired block; in the
last one REB refines token by token. A fresh adapter changes nothing, bit for bit. At inference it needs the prompt and
nothing else: no label, no vision-language model.

With `branch.kind: lora` there is no branch: LoRA adapts the backbone's own blocks, SEB shifts the backbone's latent and
REB sits in its last block (rows LoRA, LoRA + SEB, LoRA + REB). With `adapter: plain` the branch has neither SEB nor
REB but as many parameters.

References: ProPhy (Wang et al., 2025), Fig. 2 and Table 3.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backbones import Backbone, BlockStack, Call, Text, Tokens, blocks_of
from physexperts import collect
from prophy import losses
from prophy.config import Recipe
from prophy.labels import names
from prophy.lora import LoraBlocks
from prophy.physical import PhysicalBlocks, embedded
from prophy.refine import Refinement, RefinementExpertBlock
from prophy.semantic import SemanticExpertBlock, Semantics

__all__ = ["ProphyAdapter", "Seen", "count"]


@dataclass
class Seen:
    """What one forward did: the level of noise, which rows are which side of the guidance, both routings."""

    sigma: Float[Tensor, " b"]
    branch_rows: dict[str, slice]
    semantics: Semantics | None = None
    refinement: Refinement | None = None


@dataclass
class State:
    """Between two blocks: the branch's tokens (None with LoRA)."""

    branch: Tokens | None


class ProphyAdapter(nn.Module):
    """The trainable part of ProPhy for one backbone."""

    kind = "prophy"
    needs_blocks = True

    def __init__(self, backbone: Any, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        stack = blocks_of(backbone.transformer)
        d, plain = recipe.data, recipe.adapter == "plain"
        self.latent = backbone.spec.latent.shape(d.frames, d.height, d.width)
        labels = len(names(d.vocabulary))
        lora = recipe.branch.kind == "lora"
        semantic = SemanticExpertBlock(
            text_dim=backbone.spec.text_dim,
            experts=recipe.semantic.experts,
            channels=self.latent[0],
            grid=self.latent[1:],
            labels=labels,
            hidden=recipe.semantic.hidden,
            std=0.0 if lora else recipe.semantic.std,  # LoRA: the maps shift the backbone's own latent
            token_dropout=recipe.semantic.token_dropout,
            partners=(recipe.accumulate - 1) * recipe.batch * int(os.environ.get("WORLD_SIZE", "1")),
            micro_batches=recipe.accumulate,
        )
        refine = RefinementExpertBlock(
            dim=stack.spec.dim,
            experts=recipe.refine.experts,
            k=recipe.refine.k,
            labels=labels,
            hidden=recipe.refine.hidden,
            jitter=recipe.refine.jitter,
        )
        spare = (count(semantic) + count(refine)) // (2 * stack.spec.dim * recipe.branch.blocks) if plain else 0
        self.physical = None if lora else PhysicalBlocks(stack, recipe.branch.blocks, widening=spare)
        self.lora = (
            LoraBlocks(
                stack,
                rank=recipe.branch.lora_rank,
                alpha=recipe.branch.lora_alpha,
                targets=recipe.branch.lora_targets,
            )
            if lora
            else None
        )
        self.semantic = semantic if recipe.semantic.on and not plain else None
        self.refine = refine if recipe.refine.on and not plain else None
        self.inverted = False
        self.seen: Seen | None = None  # of the last forward
        self.watch: Callable[[Seen], None] | None = None  # called after every forward of a sampling
        self.origin: dict[str, Any] | None = None  # of its weights: hash, backbone, steps

    @classmethod
    def from_bundle(cls, bundle: Any, backbone: Backbone, *, recipe: Recipe | None = None) -> "ProphyAdapter":
        """Build the adapter of a trained bundle beside its backbone; `recipe` replaces the one it was trained with."""
        adapter = cls(backbone, recipe or Recipe.model_validate(bundle.meta["config"]))
        load(adapter, bundle)
        adapter.inverted = adapter.recipe.sampling.inverted
        return adapter.to(next(backbone.transformer.parameters()).device).eval()

    def groups(self) -> dict[str, nn.Module]:
        """The parts that are there, as stages and bundles name them: what routes apart from what is routed to."""
        parts: dict[str, nn.Module] = {}
        if self.semantic is not None:
            s = self.semantic
            parts["semantic"] = nn.ModuleDict(
                {"standard": s.standard, "router": s.router, "head": s.head, "partners": s.partners}
            )
            parts["maps"] = s.maps
        parts |= {name: part for name, part in (("physical", self.physical), ("lora", self.lora)) if part is not None}
        if self.refine is not None:
            parts["refine"] = nn.ModuleDict({"router": self.refine.router, "head": self.refine.head})
            parts["experts"] = self.refine.experts
        return parts

    def rates(self) -> dict[str, float]:
        """What multiplies the learning rate of each group."""
        return {name: self.recipe.refine.rate if name == "refine" else 1.0 for name in self.groups()}

    def prepare(self, prompts: list[str], text: Text) -> None:
        """Nothing to do: the text of each forward is all that routing reads."""

    def begin(self, call: Call, tokens: Tokens, stack: BlockStack) -> State:
        """Route the prompts and embed the shifted latent for the branch."""
        self.seen = Seen(call.sigma, call.branch_rows)
        shift = None
        if self.semantic is not None:
            semantics: Semantics = self.semantic(call.text, inverted=self.inverted)
            self.seen.semantics = semantics
            t, y, x = call.x_s.shape[2:]
            shift = embedded(stack, self.semantic.shift(semantics, (t, y, x)))
        if self.physical is None:
            self.shift = shift
            return State(None)
        return State(tokens if shift is None else replace(tokens, h=tokens.h + shift.to(tokens.h.dtype)))

    def block(self, k: int, tokens: Tokens, state: State, stack: BlockStack) -> tuple[Tokens, State]:
        """Run the backbone's block k, or its LoRA shadow."""
        if self.lora is None:
            return stack.block(k, tokens), state
        if k == 0 and self.shift is not None:
            tokens = replace(tokens, h=tokens.h + self.shift.to(tokens.h.dtype))
        last = k == len(stack) - 1 and self.refine is not None
        seam = self._refine if last else None
        return stack.block(k, tokens, module=self.lora.shadows[k], after_cross_attention=seam), state

    def after_block(self, k: int, tokens: Tokens, state: State, stack: BlockStack) -> tuple[Tokens, State]:
        """Run the physical block that is paired with block k, and add it to the stream."""
        if self.physical is not None and state.branch is not None and k in self.physical.places:
            seam = self._refine if k == self.physical.last and self.refine is not None else None
            branch = self.physical.step(k, state.branch, stack, refine=seam)
            tokens, state = replace(tokens, h=self.physical.inject(k, tokens.h, branch)), State(branch)
        if k == len(stack) - 1 and self.watch is not None and self.seen is not None:
            self.watch(self.seen)
        return tokens, state

    def tell(self, batch: Mapping[str, Any], generator: torch.Generator) -> None:
        """Nothing to do: the text of each forward is all that the routers read, in training too."""

    def first(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """L_coarse of captions alone, for the stage before the branch moves."""
        assert self.semantic is not None
        text = Text(batch["text"], batch["mask"])
        semantics: Semantics = self.semantic(text)
        group = torch.distributed.group.WORLD if torch.distributed.is_initialized() else None
        whole = collect([semantics.output], [batch["labels"]], group=group)[0]
        weights = self.recipe.losses
        found = {"coarse": weights.coarse * losses.coarse(semantics, batch["labels"], whole, weights)}
        return found | health(Seen(torch.zeros(0), {}, semantics))

    def terms(self, batch: Mapping[str, Any], labels: Float[Tensor, "b L"]) -> dict[str, Tensor]:
        """What the last forward adds to the diffusion loss, weighed, and what the log shows of its routers."""
        seen, weights = self.seen, self.recipe.losses
        assert seen is not None
        found: dict[str, Tensor] = {}
        if self.semantic is not None and seen.semantics is not None and weights.coarse:
            whole = self.semantic.partners(seen.semantics.output, labels)
            found["coarse"] = weights.coarse * losses.coarse(seen.semantics, labels, whole, weights)
        if seen.refinement is not None and "target" in batch and weights.align:
            fine = losses.fine(seen.refinement, batch["target"], batch["active"], weights)
            found["align"] = weights.align * fine
        if seen.refinement is not None and weights.balance:
            found["balance"] = weights.balance * losses.balance(seen.refinement)
        return found | health(seen)

    def _refine(self, h: Float[Tensor, "b n d"], tokens: Tokens) -> Float[Tensor, "b n d"]:
        assert self.refine is not None
        assert self.seen is not None
        out, refinement = self.refine(h, tokens.grid)
        if self.seen.refinement is None:  # a checkpointed block is entered a second time, in the backward pass
            self.seen.refinement = refinement
        return out


def load(adapter: Any, bundle: Any) -> None:
    """Fill an adapter's groups from a bundle and note where the weights come from."""
    for name, module in adapter.groups().items():
        own = {key: value for key, value in module.state_dict().items() if "partners." in key}  # not in a bundle
        module.load_state_dict(own | bundle.tensors.get(name, {}))
    adapter.origin = bundle.origin


@torch.no_grad()
def health(seen: Seen) -> dict[str, Tensor]:
    """How busy the routers are: entropy over log E of both, experts that no token of the batch chose."""
    found = {}
    for name, part in (("semantic", seen.semantics), ("refine", seen.refinement)):
        if part is not None:
            p = part.routing.probs
            found[f"log/{name}_entropy"] = torch.special.entr(p).sum(-1).mean() / math.log(max(p.shape[-1], 2))
    if seen.refinement is not None:
        chosen = seen.refinement.routing.selected.flatten(0, -2).any(0)
        found["log/refine_dead"] = (~chosen).sum().float()
    return found


def count(module: nn.Module) -> int:
    """How many parameters a module has."""
    return sum(p.numel() for p in module.parameters())
