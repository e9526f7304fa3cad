"""A trained adapter in a folder: `bundle.safetensors` (keys `group.name`) and `bundle.json` (what it is and what it was
made for).

A bundle holds the adapter alone, never the frozen model. `requires` says how much of the backbone must be the same:
"config" (the architecture and its latent space: an adapter that reads hidden states) or "latent" (the latent space
alone: an adapter of the velocity fits every model that shares a VAE and a text encoder). Other weights under the same
architecture draw a warning, not an error.

Files appear by rename, tensors first: a `bundle.json` always speaks of a complete `bundle.safetensors`, whose hash it
holds.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load as parse_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor

from backbones.contract import Adapter, Backbone

__all__ = ["Bundle", "build", "check", "load", "save", "shipped"]

FORMAT = 1
KEYS = ("kind", "requires", "groups", "sha256", "backbone", "config")
TENSORS, META = "bundle.safetensors", "bundle.json"
ADAPTERS, SHIPPED = "physbackbones.adapters", "physbackbones.bundles"


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle: `tensors[group]` is the state dict of a group, `meta` the whole of `bundle.json`."""

    kind: str
    tensors: dict[str, dict[str, Tensor]]
    meta: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config that the adapter was built with."""
        return self.meta["config"]


def save(
    folder: str | Path,
    *,
    kind: str,
    groups: Mapping[str, Mapping[str, Tensor]],
    backbone: Backbone,
    config: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]] = (),
    requires: Literal["config", "latent"] = "config",
) -> Path:
    """Write a bundle and give its folder; ValueError for a group name with a dot (it would not come back)."""
    bad = [g for g in groups if "." in g or not g]
    if bad:
        raise ValueError(f"expected group names without dots, got {', '.join(map(repr, bad))}")
    flat = {f"{g}.{n}": t.detach().cpu().contiguous() for g, state in groups.items() for n, t in state.items()}
    tensors = write_tensors(_unshared(flat))
    meta = {
        "format": FORMAT,
        "kind": kind,
        "requires": requires,
        "groups": list(groups),
        "sha256": hashlib.sha256(tensors).hexdigest(),
        "backbone": {
            "id": backbone.id,
            "config_hash": backbone.config_hash,
            "latent_hash": backbone.latent_hash,
            "backbone_digest": backbone.digest,
            "text_digest": getattr(backbone, "text_digest", ""),
            "spec": backbone.spec.to_dict(),
        },
        "config": dict(config),
        "stages": [dict(s) for s in stages],
        "versions": {name: version(name) for name in ("physbackbones", "torch", "diffusers", "transformers")},
    }
    text = json.dumps(meta, indent=1) + "\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((TENSORS, tensors), (META, text.encode())):
        part = folder / f"{name}.tmp"
        part.write_bytes(content)
        part.replace(folder / name)
    return folder


def load(folder: str | Path) -> Bundle:
    """Read a bundle; ValueError for a folder that holds none, another format, or tensors that are not its own."""
    folder = Path(folder)
    missing = [n for n in (META, TENSORS) if not (folder / n).is_file()]
    if missing:
        raise ValueError(
            f"expected a bundle folder with {META} and {TENSORS}, got {folder} without {' and '.join(missing)}"
        )
    meta = json.loads((folder / META).read_text())
    if meta.get("format") != FORMAT:
        raise ValueError(
            f"expected bundle format {FORMAT}, got {meta.get('format')} in {folder}. Update physbackbones."
        )
    if lacking := [key for key in KEYS if key not in meta]:
        raise ValueError(f"expected the keys {', '.join(KEYS)} in {folder / META}, got it without {', '.join(lacking)}")
    content = (folder / TENSORS).read_bytes()
    if hashlib.sha256(content).hexdigest() != meta["sha256"]:
        raise ValueError(f"{folder / TENSORS} is not the file that {META} describes: copy the bundle again")
    tensors: dict[str, dict[str, Tensor]] = {g: {} for g in meta["groups"]}
    for key, value in parse_tensors(content).items():
        group, _, name = key.partition(".")
        if group not in tensors or not name:
            known = ", ".join(tensors)
            raise ValueError(
                f"{folder / TENSORS} holds {key!r}, expected names of the groups {known}, as `save` writes"
            )
        tensors[group][name] = value
    return Bundle(meta["kind"], tensors, meta)


def check(bundle: Bundle, backbone: Backbone) -> None:
    """Refuse a backbone that the bundle was not made for, naming what differs; warn when only the weights differ."""
    made = bundle.meta["backbone"]
    key = f"{bundle.meta['requires']}_hash"
    if made[key] != getattr(backbone, key):
        raise ValueError(
            f"this {bundle.kind} bundle was made for {made['id']}, not for {backbone.id}: "
            + (_difference(made["spec"], backbone.spec.to_dict()) or "the transformer's config differs")
            + f". Load {made['id']}, or train the adapter on {backbone.id}."
        )
    if made["backbone_digest"] != backbone.digest:
        warnings.warn(
            f"this {bundle.kind} bundle was trained on other weights ({made['id']}, {made['backbone_digest']})"
            f" than those of {backbone.id} ({backbone.digest}): it fits, but what was measured does not carry over.",
            stacklevel=2,
        )
        return
    made_text, text = made.get("text_digest"), getattr(backbone, "text_digest", "")
    if made_text and text and made_text != text:
        warnings.warn(
            f"this {bundle.kind} bundle was trained with another text encoder or vocabulary ({made_text}) than that of"
            f" {backbone.id} ({text}): if it reads text features, they mean something else to it.",
            stacklevel=2,
        )


def build(bundle: Bundle, backbone: Backbone) -> Adapter:
    """Check the bundle and make its adapter, whose class is found by entry point; ValueError names what to install."""
    check(bundle, backbone)
    found = entry_points(group=ADAPTERS, name=bundle.kind)
    if not found:
        raise ValueError(
            f"no installed package knows the adapter kind {bundle.kind!r}: install the one that does"
            f" (`uv pip install {bundle.kind}`); it registers under the entry-point group {ADAPTERS!r}."
        )
    return next(iter(found)).load().from_bundle(bundle, backbone)


def shipped(name: str) -> Path:
    """Give the folder of a bundle that an installed package ships (entry-point group `physbackbones.bundles`)."""
    found = entry_points(group=SHIPPED)
    for entry in found:
        if entry.name == name:
            place: Any = entry.load()
            folder: Any = place() if callable(place) else place
            return Path(folder)
    known = ", ".join(sorted(e.name for e in found)) or "none"
    raise ValueError(f"no installed package ships a bundle {name!r}; shipped are: {known}")


def _unshared(flat: dict[str, Tensor]) -> dict[str, Tensor]:
    """Safetensors refuses tensors that share memory (tied weights): each gets its own copy."""
    owners: set[int] = set()
    result = {}
    for key, tensor in flat.items():
        owner = tensor.untyped_storage().data_ptr()
        result[key] = tensor.clone() if owner in owners else tensor
        owners.add(owner)
    return result


def _difference(made: dict[str, Any], now: dict[str, Any]) -> str:
    flat = [{**spec, **spec["latent"]} for spec in (made, now)]
    names = ("channels", "stride", "patch", "mean", "std", "text_dim", "prediction")
    return "; ".join(f"{n} {flat[0][n]} against {flat[1][n]}" for n in names if flat[0][n] != flat[1][n])
