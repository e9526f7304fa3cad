"""What a model and a clip of a size cost, from configurations alone: parameters, tokens, bytes.

Bytes are those of the tensors themselves, in bfloat16 and in float32. What an attention kernel or an optimiser needs
beside them is not counted. One hidden state is what one block gives for one clip; a joint model (CogVideoX) carries its
text in it.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backbones.contract import Spec, Text
from backbones.skeleton import skeleton

__all__ = ["Part", "Sizes", "bytes_of", "measure", "parts_of", "stand_in", "weightless"]


@dataclass(frozen=True)
class Part:
    """A module of the pipeline."""

    name: str
    kind: str
    parameters: int


@dataclass(frozen=True)
class Sizes:
    """A model with one clip. `numbers` are counts of values by what they are, in the order in which they appear."""

    id: str
    pipeline: str
    spec: Spec
    parts: tuple[Part, ...]
    blocks: int
    heads: int
    dim: int
    in_channels: int
    sigma_ranges: tuple[tuple[float, float], ...]
    frames: int
    height: int
    width: int
    latent: tuple[int, int, int, int]
    grid: tuple[int, int, int]
    tokens: int
    numbers: dict[str, int]

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Give plain JSON values; memory in bytes."""
        values = {p.name: p.parameters for p in self.parts} | self.numbers
        return {
            "id": self.id,
            "pipeline": self.pipeline,
            "spec": self.spec.to_dict(),
            "parts": [asdict(p) for p in self.parts],
            "parameters": self.parameters,
            "transformer": {
                "blocks": self.blocks,
                "heads": self.heads,
                "dim": self.dim,
                "in_channels": self.in_channels,
            },
            "sigma_ranges": [list(r) for r in self.sigma_ranges],
            "clip": {"frames": self.frames, "height": self.height, "width": self.width},
            "latent": list(self.latent),
            "grid": list(self.grid),
            "tokens": self.tokens,
            "memory": {name: {"bf16": 2 * n, "fp32": 4 * n} for name, n in values.items()},
        }

    def __str__(self) -> str:
        lat, time = self.spec.latent, self.spec.time
        c, t, h, w = self.latent
        lines = [
            f"{self.id} ({self.pipeline})",
            "",
            f"  latent      {lat.channels} channels, stride {_by(lat.stride)}, {lat.frame_rule} frames",
            f"  patch       {_by(lat.patch)} (t, y, x)",
            f"  time        {time.fps:g} fps, {time.stride / time.fps:.4g} s a latent",
            f"  prediction  {self.spec.prediction}" + (", one timestep a token" * self.spec.per_token_time),
            f"  text        {self.spec.text_length} x {self.spec.text_dim}",
            f"  blocks      {self.blocks}, {self.heads} heads, {self.dim} dimensions",
        ]
        if self.in_channels > lat.channels:
            lines.append(f"  condition   {self.in_channels - lat.channels} of {self.in_channels} channels: an image")
        if len(self.sigma_ranges) > 1:
            lines.append(
                f"  experts     sigma in {' and '.join(f'{low:g}..{high:g}' for low, high in self.sigma_ranges)}"
            )
        lines += [
            "",
            f"  clip        {self.frames} x {self.height} x {self.width}"
            f" -> latent {c} x {_by((t, h, w))} -> grid {_by(self.grid)} = {self.tokens:,} tokens",
        ]
        rows = [(f"{p.name} ({p.kind})", p.parameters) for p in self.parts] + list(self.numbers.items())
        wide = max(28, *(len(name) + 2 for name, _ in rows))
        lines += ["", f"  {'':{wide}}{'values':>16}{'bf16':>13}{'fp32':>13}"]
        lines += [f"  {name:{wide}}{n:>16,}{_bytes(2 * n):>13}{_bytes(4 * n):>13}" for name, n in rows]
        return "\n".join(lines)


def measure(
    name: str | Path, *, frames: int | None = None, height: int | None = None, width: int | None = None
) -> Sizes:
    """Measure a family, folder or hub id for one clip; ValueError names the nearest legal size.

    Without a size it is the usual clip of a published model, else five latents of four by four tokens.
    """
    from backbones.loading import wrap

    pipe, about = skeleton(name)
    fps = about.get("fps")
    backbone: Any = wrap(pipe, id=about["id"], fps=None if fps is None else float(fps))
    spec: Spec = backbone.spec
    step = spec.latent.frame_step or spec.latent.stride[0]
    (_, sy, sx), (pt, py, px) = spec.latent.stride, spec.latent.patch
    clip = (
        about.get("frames", 1 + 4 * step) if frames is None else frames,
        about.get("height", 4 * sy * py) if height is None else height,
        about.get("width", 4 * sx * px) if width is None else width,
    )
    latent = spec.latent.shape(*clip)
    _, t, h, w = latent
    grid = (t // pt, h // py, w // px)
    tokens = grid[0] * grid[1] * grid[2]
    config = pipe.transformer.config
    dim = config.num_attention_heads * config.attention_head_dim
    joint = spec.text_length if spec.prediction == "v" else 0
    numbers = {
        "one hidden state": (tokens + joint) * dim,
        "latent": latent[0] * t * h * w,
        "text features": spec.text_length * spec.text_dim,
        "video": 3 * clip[0] * clip[1] * clip[2],
    }
    if spec.per_token_time:
        numbers["modulation (per token)"] = 6 * tokens * dim
    modules = [(n, m) for n, m in pipe.components.items() if isinstance(m, nn.Module)]
    return Sizes(
        id=about["id"],
        pipeline=type(pipe).__name__,
        spec=spec,
        parts=tuple(Part(n, type(m).__name__, sum(p.numel() for p in m.parameters())) for n, m in modules),
        blocks=config.num_layers,
        heads=config.num_attention_heads,
        dim=dim,
        in_channels=config.in_channels,
        sigma_ranges=tuple(backbone.sigma_ranges),
        frames=clip[0],
        height=clip[1],
        width=clip[2],
        latent=latent,
        grid=grid,
        tokens=tokens,
        numbers=numbers,
    )


def weightless(name: str | Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """Give what `load(name, dtype=dtype)` would, without weights: every module on the meta device, in its dtype.

    It has the spec, the shapes and the code of the real one, for counting what a step takes; `embed` gives zeros of the
    right shape. ValueError as in `skeleton`.
    """
    from backbones.loading import wrap

    pipe, about = skeleton(name)
    fps = about.get("fps")
    backbone = wrap(pipe, id=about["id"], fps=None if fps is None else float(fps))
    vae = torch.float32 if backbone.float32_vae else dtype  # as `load` has it
    for part, module in pipe.components.items():
        if isinstance(module, nn.Module):
            _cast(module, vae if part == "vae" else dtype)
    spec = backbone.spec

    def embed(prompts: list[str]) -> Text:
        rows = (len(prompts), spec.text_length)
        return Text(torch.zeros(*rows, spec.text_dim), torch.ones(rows, dtype=torch.bool))

    backbone.embed = embed  # pyright: ignore[reportAttributeAccessIssue]
    return backbone


def stand_in(recipe: Any) -> tuple[Any, Any]:
    """Give a recipe (with a `backbone`, a `dtype` and a `device`) as a dry run takes it, on a CPU, which is what a dry
    run's tensors call their device whatever it stands for, and its backbone without weights.
    """
    backbone = weightless(recipe.backbone, dtype=getattr(torch, recipe.dtype))
    return recipe.model_copy(update={"device": "cpu"}), backbone


def bytes_of(module: nn.Module) -> int:
    """Count the bytes of a module's weights.

    >>> bytes_of(nn.Linear(2, 3))
    36
    """
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def parts_of(backbone: Any) -> dict[str, int]:
    """Count the bytes of every module of a backbone's pipeline, by the name of its part."""
    modules = {name: m for name, m in backbone.pipe.components.items() if isinstance(m, nn.Module)}
    return {name: bytes_of(module) for name, module in modules.items()}


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters as loading does: what a diffusers model lists by name stays in float32."""
    kept = getattr(module, "_keep_in_fp32_modules", None) if hasattr(module, "config_name") else None
    for name, p in module.named_parameters():
        whole = any(part in name.split(".") for part in kept or ())
        p.data = p.data.to(torch.float32 if whole else dtype)


def _by(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def _bytes(n: int) -> str:
    """Give a size as people read it.

    >>> _bytes(2_838_000_000), _bytes(512)
    ('2.64 GiB', '0.50 KiB')
    """
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n / 2**10:.2f} KiB"
