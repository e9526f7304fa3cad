"""The single-stream student: the backbone with other weights, taught by relations between tokens.

In training its hidden states behind one block, through a projector, are aligned with features of the same noisy clip
(`Distillation`): the teacher's, whose perception stream is fed with the noised true perception, or those of a video
encoder that saw the clean clip (VideoREPA). Teacher and encoder are frozen; they and the projector are gone afterwards.

What is left is a stock transformer. `Student` is it behind the adapter contract, so that `backbones.attach` puts it in
a pipeline like any other bundle; `mmphysvideo.export` writes it for people who have diffusers alone.

References: MMPhysVideo (2026), the student; VideoREPA (Zhang et al., 2025).
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from backbones import BlockStack, Call, Text, Tokens, blocks_of
from mmphysvideo import relations
from mmphysvideo.config import Align, Recipe
from mmphysvideo.streams import Stream
from mmphysvideo.teacher import Teacher
from mmphysvideo.weights import plain, trainable

__all__ = ["Learner", "Student"]


@dataclass
class Running:
    """The student's own tokens between two blocks of a pipeline's call."""

    tokens: Tokens


class Student(nn.Module):
    """A trained student, LoRA merged, in the place of the pipeline's transformer; every operation is the base's."""

    kind = "mmphysvideo"
    needs_blocks = True

    def __init__(self, recipe: Recipe, backbone: Any, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.recipe, self.backbone, self.state = recipe, backbone, weights
        self.stream = Stream(backbone, plain(backbone, recipe.student.weights, weights))
        self.origin: dict[str, Any] = {}  # of a loaded bundle

    @property
    def model(self) -> Any:
        """The stock transformer."""
        return self.stream.model

    def groups(self) -> dict[str, nn.Module]:
        """Nothing that a bundle could be made of: a merged model no longer tells what was trained (see `state`)."""
        return {}

    def prepare(self, prompts: list[str], text: Text) -> None:
        """Nothing to do."""

    def begin(self, call: Call, tokens: Tokens, stack: BlockStack) -> Running:
        """Embed the call's latent with the student's own weights."""
        return Running(self.stream.begin(call.x_s, call.sigma, call.text.features, timestep=call.timestep))

    def block(self, k: int, tokens: Tokens, state: Running, stack: BlockStack) -> tuple[Tokens, Running]:
        """Run the student's block k; the base's tokens stay what they were."""
        state.tokens = self.stream.stack.block(k, state.tokens)
        return tokens, state

    def after_block(self, k: int, tokens: Tokens, state: Running, stack: BlockStack) -> tuple[Tokens, Running]:
        """Nothing to do: `block` has done it."""
        return tokens, state

    def end(self, tokens: Tokens, state: Running, stack: BlockStack) -> Tensor:
        """The student's own answer."""
        return self.stream.stack.end(state.tokens)


class Learner(nn.Module):
    """A student in training, with what it learns from. `width` is that of an encoder's features (none: the teacher's).

    ValueError for blocks that the backbone does not have, a teacher that is missing, and one that is not asked for.
    """

    def __init__(self, recipe: Recipe, backbone: Any, teacher: Teacher | None = None, *, width: int = 0) -> None:
        super().__init__()
        a, spec = recipe.student.align, blocks_of(backbone.transformer).spec
        check(a, spec.n_blocks, teacher)
        self.recipe, self.backbone = recipe, backbone
        trained = trainable(backbone, recipe.student.weights)
        self.stream, self.weights = trained.stream, trained.group
        self.blocks = spec.n_blocks
        object.__setattr__(self, "teacher", teacher)  # no child: it is frozen, and its weights are its bundle's
        self.projector = None
        if a.source != "none":
            self.projector = relations.Projector(spec.dim, a.hidden, width or spec.dim)

    teacher: Teacher | None

    def groups(self) -> dict[str, nn.Module]:
        """What moves."""
        return {"weights": self.weights} | ({"projector": self.projector} if self.projector is not None else {})

    def forward(
        self, x: Float[Tensor, "b c t h w"], sigma: Float[Tensor, "b *t"], text: Float[Tensor, "b l e"]
    ) -> tuple[Float[Tensor, "b c t h w"], Tokens | None]:
        """Give the flow velocity, and the tokens behind the block that is aligned."""
        tokens, kept = self.stream.begin(x, sigma, text), None
        for k in range(self.blocks):
            tokens = self.stream.stack.block(k, tokens)
            if self.projector is not None and k == self.recipe.student.align.place:
                kept = tokens
        return self.stream.flow(self.stream.stack.end(tokens), x, sigma), kept

    def alignment(
        self,
        kept: Tokens,
        x: Float[Tensor, "b c t h w"],
        q: Float[Tensor, "b c t h w"] | None,
        sigma: Float[Tensor, "b *t"],
        text: Float[Tensor, "b l e"],
        features: Float[Tensor, "b f y x d"] | None = None,
    ) -> Float[Tensor, ""]:
        """The alignment of the kept tokens with the teacher's on the same x (and the noised true perception q), or
        with an encoder's `features`.
        """
        a = self.recipe.student.align
        assert self.projector is not None
        own = relations.pooled(kept.h.float(), kept.grid, a.cells)
        if a.source == "teacher":
            assert self.teacher is not None
            assert q is not None
            rgb, perception = self.teacher.features(x, q, sigma, text, place=a.teacher_place)
            wanted = [
                relations.pooled(h.float(), kept.grid, a.cells)
                for name, h in (("rgb", rgb), ("perception", perception))
                if a.stream in (name, "both")
            ]
        else:
            assert features is not None
            wanted = [features.float()]
        each = [self._distance(own, target) for target in wanted]
        return sum(each[1:], start=each[0]) / len(each)

    def _distance(self, own: Float[Tensor, "b t y x d"], target: Float[Tensor, "b t2 y2 x2 e"]) -> Float[Tensor, ""]:
        a = self.recipe.student.align
        assert self.projector is not None
        grid: Any = tuple(target.shape[1:4])
        dtype = next(self.projector.parameters()).dtype
        said, flat = self.projector(relations.on_grid(own, grid).to(dtype)), target.flatten(1, 3)
        if a.kind == "cosine":
            return relations.cosine(said, flat)
        return relations.relations(said, flat, margin=a.margin, rows=a.rows)


def check(a: Align, blocks: int, teacher: Teacher | None) -> None:
    """Refuse what cannot be aligned."""
    places = {"student.align.place": a.place, "student.align.teacher_place": a.teacher_place}
    for name, place in places.items() if a.source != "none" else ():
        if place >= blocks:
            raise ValueError(f"expected {name} among the blocks 0 to {blocks - 1} of the backbone, got {place}")
    if a.source == "teacher" and teacher is None:
        raise ValueError(
            "expected a teacher for student.align.source=teacher, got none: train one with `mmphysvideo train --stage"
            " teacher --out RUN` and pass --teacher RUN/bundle"
        )
    if a.source != "teacher" and teacher is not None:
        raise ValueError(f"expected no teacher for student.align.source={a.source}, got one: leave --teacher out")
