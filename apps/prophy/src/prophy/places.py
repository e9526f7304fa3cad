"""Where the phenomena of held-out clips are, said by three: the exact fields, REB's head, and the frozen generator in
its own attention to the words that name them.

A clip is noised to 10 % and predicted once without ProPhy, to read the attention of the video's tokens over the text
(`vlmdistill.word_maps`; mean over blocks, heads, and the caption's words that name the phenomenon), and once with it.
This is the paper's comparison of a language model's maps with a generator's own, on clips whose truth is known.

References: ProPhy (Wang et al., 2025), Fig. 4. The words and the means are our choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

import physworld
from backbones import Backbone, attach, paths
from physexperts import MECHANISMS
from physworld import captions
from prophy import where
from prophy.adapter import ProphyAdapter
from prophy.data import token_grid
from prophy.refine import Refinement
from vlmdistill import token_targets, word_maps
from vlmdistill.localisation import Localisation, localise

__all__ = ["NAMING", "Places", "look"]

NOISE = 0.1  # paper
NAMING = {
    "rigid_body": "ball thrown gravity",
    "elastic": "sheet beads plucked spring swings",
    "fluid": "ink vortex vortices turns",
    "compressible_flow": "air blast blasts spread spreads",
    "phase_change": "ice disk disks melt melts grow grows",
    "collision": "ball hits bounces sticks",
    "thermal": "hot warm cold spot spots spread spreads",
    "optical": "wave ripple ripples slit slits spread spreads",
}
"""The words of a caption that name its phenomenon: what it acts on and what happens."""


@dataclass(frozen=True)
class Places:
    """Clips with, by clip and mechanism, the cells where it acts, and how strongly; REB's maps; the attention's maps
    (none where no word of the caption is a token of its own); the tokens that REB's router read; the frame nearest to
    each latent time.
    """

    clips: list[physworld.Clip]
    truth: list[dict[str, Bool[Tensor, "t y x"]]]
    strength: list[dict[str, Float[Tensor, "t y x"]]]
    refinement: Refinement
    attention: list[dict[str, Float[Tensor, "t y x"]]]
    tokens: Float[Tensor, "b n d"]
    frames: list[int]

    def scored(self, maps: Sequence[dict[str, Tensor]]) -> dict[str, list[Localisation]]:
        """The scores of maps by mechanism, of clips in which it is somewhere and not everywhere."""
        scores: dict[str, list[Localisation]] = {m: [] for m in MECHANISMS}
        for true, said in zip(self.truth, maps, strict=True):
            for name, cells in true.items():
                if name in said and bool(cells.any()) and not bool(cells.all()):
                    scores[name].append(localise(said[name], cells))
        return scores

    def read(self) -> list[dict[str, Float[Tensor, "t y x"]]]:
        """REB's maps by clip and mechanism."""
        rows = zip(self.refinement.on_grid.float().cpu(), self.truth, strict=True)
        return [{name: row[MECHANISMS.index(name)] for name in true} for row, true in rows]


def look(adapter: ProphyAdapter, backbone: Backbone, *, clips: int = 8, split: str = "val") -> Places:
    """See `clips` held-out clips a mechanism through all three."""
    assert adapter.refine is not None
    recipe = adapter.recipe
    grid, times_s = token_grid(recipe, backbone)
    made = [c for m in MECHANISMS for c in physworld.simulate_many(m, range(clips), split=split)]
    truth, strength = [], []
    for clip in made:
        maps = where.seen_in(clip, clip.labels, contact_frames=recipe.targets.contact_frames)
        laid = token_targets(maps, categories=MECHANISMS, present=list(maps.maps), grid=grid, times_s=times_s)
        truth.append({c: laid.mask[MECHANISMS.index(c)] for c in maps.maps})
        strength.append({c: laid.values[MECHANISMS.index(c)] for c in maps.maps})
    said = [clip.caption for clip in made]
    frames = torch.stack([torch.from_numpy(c.video) for c in made]).permute(0, 4, 1, 2, 3)
    seen: list[Tensor] = []
    with torch.no_grad():
        x0 = backbone.encode(frames.float().to(recipe.device) / 127.5 - 1)
        sigma = torch.full((len(x0),), NOISE, device=x0.device)
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(x0.device)
        x_s, text = paths.noise(x0, eps, sigma), backbone.embed(said)
        modules, first = text_attention(backbone)
        length = text.features.shape[1]
        with word_maps(modules, range(length), first=first, keys=length + first) as words:
            backbone.predict(x_s, sigma, text)
        hook = adapter.refine.router.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        try:
            with attach(backbone, adapter, in_predict=True):
                backbone.predict(x_s, sigma, text)
        finally:
            hook.remove()
    assert adapter.seen is not None
    assert adapter.seen.refinement is not None
    over = words.mean().unflatten(1, grid).cpu()
    attention = []
    for row, clip, true in zip(over, made, truth, strict=True):
        places = {name: naming(backbone, clip.caption, name) for name in true}
        attention.append({name: row[..., at].mean(-1) for name, at in places.items() if at})
    near = [round(t * recipe.data.fps) for t in times_s.tolist()]
    return Places(made, truth, strength, adapter.seen.refinement, attention, seen[0].cpu(), near)


def text_attention(backbone: Backbone) -> tuple[list[nn.Module], int]:
    """The modules in which the video attends to the text, and the first query that is video: `attn2` of a Wan, the
    joint `attn1` of a CogVideoX.
    """
    named = list(backbone.transformer.named_modules())
    cross = [module for name, module in named if name.endswith(".attn2")]
    joint = [module for name, module in named if name.endswith(".attn1")]
    return (cross, 0) if cross else (joint, backbone.spec.text_length)


def naming(backbone: Backbone, caption: str, mechanism: str) -> list[int]:
    """The places, among the tokens of a caption, of the words that name a mechanism."""
    wanted = set(NAMING[mechanism].split()) & set(captions.words(caption))
    tokenizer = backbone.pipe.tokenizer
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(caption)["input_ids"])
    return [i for i, piece in enumerate(pieces) if piece.strip("▁").removesuffix("</w>").lower() in wanted]
