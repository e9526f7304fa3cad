"""What a cached artefact was made from (`Source`) and by what (`Producer`).

A source is the content of a clip, not its name, with the decode spec: another size is another source, a renamed file
is the same. A producer is everything that changes the numbers: model, revision, normalisation, dtype, settings, and the
schema that you raise when the code changes what it stores. Two recipes with two autoencoders keep both latents of a
clip in one store, and share its flow.

Usual names: `latent` (the posterior's mean) and `latent_logvar`, so that a latent can be drawn anew in every epoch;
`text`, `flow`, `vjepa2`, `vlm_maps`, `masks`, `pseudo_rgb`; `times_s`, the presentation times of the clip's frames in
seconds (float64), which go along with whatever was made of them.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Producer", "Source", "changes", "misshapen", "plain", "unfit"]

_AXIS = re.compile(r"\d+|_|[a-z]\w*")


@dataclass(frozen=True)
class Source:
    """The content that an entry of a cache was made from: the SHA-256 of its bytes and the decode spec."""

    content: str
    spec: Any = None

    @classmethod
    def of(cls, media: str | Path | bytes, *, spec: Any = None) -> "Source":
        """Hash a file, or bytes, as they are decoded by `spec` (a dataclass or anything JSON).

        >>> Source.of(b"clip", spec={"fps": 16}).key == Source.of(b"clip", spec={"fps": 16.0}).key
        True
        >>> Source.of(b"clip", spec={"fps": 16}).key == Source.of(b"clip", spec={"fps": 8}).key
        False
        """
        if isinstance(media, bytes):
            return cls(hashlib.sha256(media).hexdigest(), plain(spec))
        with Path(media).open("rb") as file:
            return cls(hashlib.file_digest(file, "sha256").hexdigest(), plain(spec))

    @property
    def key(self) -> str:
        """The key of the entry."""
        return self.keyed("")

    def keyed(self, producer: str) -> str:
        """Return the key of an entry that is bound to one producer as a whole."""
        text = json.dumps([self.content, plain(self.spec), producer], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Producer:
    """What made an artefact. With another value of any field but `shape` it counts as another artefact.

    `dtype` as torch names it ("bfloat16"). `shape` names the axes: a number, a name that must have one length
    throughout an entry, or `_`; "16 t h w" for a latent and "2 t h w" for its flow hold the two to one grid. Empty
    strings are not checked.

    >>> vae = Producer("wan-vae", "a1b2", dtype="bfloat16", shape="16 t h w")
    >>> vae.digest == Producer("wan-vae", "a1b2", dtype="bfloat16").digest
    True
    >>> vae.digest == Producer("wan-vae", "a1b2", dtype="float32", shape="16 t h w").digest
    False
    """

    model: str
    revision: str = ""
    normalisation: str = ""
    dtype: str = ""
    schema: int = 1
    shape: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("expected a producer with a model (what makes the artefact), got an empty string")
        if self.dtype and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"expected a dtype as torch names it ('float32', 'bfloat16'), got {self.dtype!r}")
        if wrong := [axis for axis in self.shape.split() if not _AXIS.fullmatch(axis)]:
            raise ValueError(f"expected axes like '16 t h w' (numbers, names or _), got {wrong[0]!r} in {self.shape!r}")
        object.__setattr__(self, "settings", plain(self.settings))

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """What names this producer within a store."""
        text = json.dumps({key: value for key, value in asdict(self).items() if key != "shape"}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def changes(old: Any, new: Any, name: str = "") -> list[str]:
    """List where two JSON trees differ, as `name: old -> new`.

    >>> changes({"fps": 16, "size": {"height": 480}}, {"fps": 8, "size": {"height": 480}}, "spec")
    ['spec.fps: 16 -> 8']
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        dot = f"{name}." if name else ""
        return [line for key in keys for line in changes(old.get(key), new.get(key), f"{dot}{key}")]
    return [] if old == new else [f"{name}: {json.dumps(old)} -> {json.dumps(new)}"]


def unfit(name: str, tensor: Tensor) -> str | None:
    """Return why a tensor may not be stored at all, None when it may."""
    if not tensor.numel():
        return f"is empty, of shape {tuple(tensor.shape)}"
    if (tensor.is_floating_point() or tensor.is_complex()) and not bool(tensor.isfinite().all()):
        return "holds NaN or infinity"
    if name == "times_s" and (tensor.dtype != torch.float64 or tensor.ndim != 1 or bool((tensor.diff() <= 0).any())):
        return f"must be rising float64 seconds, one a frame, and is {tensor.dtype} of shape {tuple(tensor.shape)}"
    return None


def misshapen(tensor: Tensor, producer: Producer | None, axes: dict[str, int]) -> str | None:
    """Return how a tensor differs from what its producer promises, None when it does not; learns the lengths of `axes`.

    >>> axes = {}
    >>> misshapen(torch.zeros(16, 5, 8, 8), Producer("vae", shape="16 t h w"), axes)
    >>> misshapen(torch.zeros(2, 4, 8, 8), Producer("raft", shape="2 t h w"), axes)
    'has t = 4 where another artefact has 5'
    """
    if producer is None:
        return None
    if producer.dtype and tensor.dtype != getattr(torch, producer.dtype):
        return f"is {tensor.dtype}, its producer says {producer.dtype}"
    wanted = producer.shape.split()
    if not wanted:
        return None
    if len(wanted) != tensor.ndim:
        return f"has shape {tuple(tensor.shape)}, its producer says {producer.shape!r}"
    for axis, length in zip(wanted, tensor.shape, strict=True):
        if axis.isdigit() and int(axis) != length:
            return f"has shape {tuple(tensor.shape)}, its producer says {producer.shape!r}"
        if axis != "_" and not axis.isdigit() and axes.setdefault(axis, length) != length:
            return f"has {axis} = {length} where another artefact has {axes[axis]}"
    return None


def plain(value: Any) -> Any:
    """Return a dataclass, or a tree of them, as JSON would bring it back, whole floats as integers: 16.0 fps is 16 fps.

    ValueError for what JSON cannot hold.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else value
    if value is None or isinstance(value, (str, int)):
        return value
    raise ValueError(f"expected text, finite numbers, lists and maps (what JSON holds), got {value!r}")
