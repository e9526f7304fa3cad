"""Proof that an exported bundle does what the trained adapter did: a small recorded sampling, repeated elsewhere.

`record` samples a few prompts with the adapter and without it and writes `verify.json` beside the bundle: hashes of
both videos, values at a few points, and the largest difference that the adapter makes. `verify` loads the bundle anew,
samples again and compares. `python -m backbones verify-export BUNDLE --backbone NAME` is that in a fresh process.

Bits are equal on the machine that recorded them. Another machine rounds otherwise: there the values may differ by 5 %
of what the adapter changes (our choice), so that "with" can never pass for "without".
"""

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from backbones import attach, sample
from backbones import bundle as bundles
from backbones.contract import Adapter, Backbone

__all__ = ["Probe", "Verification", "change", "fresh", "record", "unchanged", "verify"]

FILE = "verify.json"
FORMAT = 1
POINTS = 64  # values kept of each video
SLACK = 0.05  # of the difference that the adapter makes


@runtime_checkable
class Sized(Protocol):
    """What knows the size of clips (the `data` of a recipe)."""

    @property
    def frames(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...


@dataclass(frozen=True)
class Probe:
    """What is sampled. Sizes of 0 mean a clip of five latents (fields need some for their
    derivatives in time), four tokens high and wide."""

    prompts: tuple[str, ...] = ("a ball",)
    seed: int = 0
    steps: int = 2
    guidance: float = 1.5
    mode: str = "conditional"
    frames: int = 0
    height: int = 0
    width: int = 0

    @classmethod
    def of(cls, clip: "Sized", **how: Any) -> "Probe":
        """A probe of the size of a recipe's clips."""
        return cls(frames=clip.frames, height=clip.height, width=clip.width, **how)

    def on(self, backbone: Backbone) -> "Probe":
        """Fill in the sizes for a backbone."""
        latent = backbone.spec.latent
        (t, y, x), (_, py, px) = latent.stride, latent.patch
        return replace(
            self,
            frames=self.frames or 1 + 4 * (latent.frame_step or t),
            height=self.height or 4 * y * py,
            width=self.width or 4 * x * px,
        )


@dataclass(frozen=True)
class Verification:
    """What was found. Errors are the largest deviations from the recorded values; `difference` is what the adapter
    changes, `recorded` what it changed when it was recorded.
    """

    bit_for_bit: bool
    plain_error: float
    corrected_error: float
    difference: float
    recorded: float

    @property
    def holds(self) -> bool:
        """Whether both videos are as recorded."""
        slack = SLACK * self.recorded
        within = self.plain_error <= slack and self.corrected_error <= slack  # false for an error that is no number
        return self.bit_for_bit or (self.recorded > 0 and within)

    def __str__(self) -> str:
        if self.bit_for_bit:
            return f"as recorded, bit for bit, with the adapter and without it; it changes {self.recorded:.3g}"
        errors = f"deviations {self.plain_error:.3g} without and {self.corrected_error:.3g} with the adapter"
        verdict = "as recorded up to rounding" if self.holds else "NOT as recorded"
        return f"the outputs are {verdict}: {errors}; it changes {self.difference:.3g}, recorded {self.recorded:.3g}"


def record(
    folder: str | Path, backbone: Backbone, adapter: Adapter | None = None, *, probe: Probe | None = None
) -> Path:
    """Sample and write `verify.json` into the bundle's folder; give its path.

    Pass the trained `adapter` itself, so that the bundle is held to it; without one the bundle speaks for itself.
    """
    folder = Path(folder)
    made = bundles.load(folder)
    probe = (probe or Probe()).on(backbone)
    plain, corrected = _sample(backbone, adapter if adapter is not None else bundles.build(made, backbone), probe)
    content = {
        "format": FORMAT,
        "bundle": made.meta["sha256"],
        "backbone": {"id": backbone.id, "digest": backbone.digest},
        "probe": asdict(probe),
        "plain": _summary(plain),
        "corrected": _summary(corrected),
        "difference": float((corrected - plain).abs().max()),
        "torch": torch.__version__,
    }
    part = folder / f"{FILE}.tmp"
    part.write_text(json.dumps(content, indent=1) + "\n")
    return part.replace(folder / FILE)


def verify(folder: str | Path, backbone: Backbone) -> Verification:
    """Load the bundle anew, sample as recorded, compare.

    ValueError when there is no record, or one of other weights.
    """
    folder = bundles.resolve(folder)
    path = folder / FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {FILE}: nothing was recorded. Record it where the adapter was trained"
            f" (backbones.verify.record, or `python -m backbones verify-export {folder} --record`)."
        )
    kept: Any = json.loads(path.read_text())
    if not isinstance(kept, dict) or kept.get("format") != FORMAT:
        found_format = kept.get("format") if isinstance(kept, dict) else type(kept).__name__
        raise ValueError(f"expected {FILE} of format {FORMAT}, got {found_format}. Update physbackbones.")
    if lacking := [k for k in ("bundle", "backbone", "probe", "plain", "corrected", "difference") if k not in kept]:
        raise ValueError(f"{path} lacks {', '.join(lacking)}: record it again")
    made = bundles.load(folder)
    if kept["bundle"] != made.meta["sha256"]:
        raise ValueError(f"{path} was recorded for other tensors than those of this bundle: record it again")
    if kept["backbone"]["digest"] != backbone.digest:
        raise ValueError(
            f"{path} was recorded on {kept['backbone']['id']} ({kept['backbone']['digest']}), this is"
            f" {backbone.id} ({backbone.digest}): pass the backbone that it was recorded on."
        )
    probe = Probe(**(kept["probe"] | {"prompts": tuple(kept["probe"]["prompts"])}))
    plain, corrected = _sample(backbone, bundles.build(made, backbone), probe)
    found = {"plain": _summary(plain), "corrected": _summary(corrected)}
    errors = {k: float(np.abs(np.array(v["values"]) - np.array(kept[k]["values"])).max()) for k, v in found.items()}
    return Verification(
        bit_for_bit=all(found[k]["sha256"] == kept[k]["sha256"] for k in found),
        plain_error=errors["plain"],
        corrected_error=errors["corrected"],
        difference=float((corrected - plain).abs().max()),
        recorded=float(kept["difference"]),
    )


def fresh(folder: str | Path, backbone: str) -> Verification:
    """Verify in a process of its own, for an export that wants proof; ValueError with that process's sentence."""
    command = [sys.executable, "-m", "backbones", "verify-export", str(folder), "--backbone", backbone, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout.strip():
        raise ValueError((done.stderr.strip().splitlines() or ["the process gave no answer"])[-1])
    return Verification(**json.loads(done.stdout))


def change(backbone: Backbone, adapter: Any, probe: Probe | None = None) -> float:
    """Give the mean absolute difference that an adapter, or the bundle in a folder, makes to a probe's video."""
    plain, corrected = _sample(backbone, adapter, (probe or Probe()).on(backbone))
    return float((corrected - plain).abs().mean())


def unchanged(backbone: Backbone, adapter: Any, probe: Probe | None = None) -> bool:
    """Tell whether an adapter leaves a probe's video as it is, bit for bit, as a fresh one does."""
    plain, corrected = _sample(backbone, adapter, (probe or Probe()).on(backbone))
    return torch.equal(plain, corrected)


def _sample(
    backbone: Backbone, adapter: Any, probe: Probe
) -> tuple[Float[Tensor, "b 3 t h w"], Float[Tensor, "b 3 t h w"]]:
    """Sample with the adapter first: what is sampled after `detach` also proves that it left no trace."""
    size = {k: getattr(probe, k) for k in ("seed", "steps", "guidance", "frames", "height", "width")}
    prompts = list(probe.prompts)
    any_backbone: Any = backbone
    if isinstance(adapter, str | Path):
        adapter = bundles.build(bundles.load(adapter), backbone)
    mode = None if getattr(adapter, "needs_blocks", False) else probe.mode  # hidden states have one mode, their own
    with torch.no_grad(), attach(any_backbone, adapter, mode=mode):
        corrected = sample(any_backbone, prompts, **size)
    with torch.no_grad():
        plain = sample(any_backbone, prompts, **size)
    return plain.float().cpu(), corrected.float().cpu()


def _summary(video: Float[Tensor, "b 3 t h w"]) -> dict[str, Any]:
    flat = video.flatten()
    points = torch.linspace(0, len(flat) - 1, POINTS).long()
    return {
        "sha256": hashlib.sha256(flat.contiguous().numpy().tobytes()).hexdigest(),
        "values": [round(v, 7) for v in flat[points].tolist()],
    }
