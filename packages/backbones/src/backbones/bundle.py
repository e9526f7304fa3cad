"""A trained adapter in a folder: `bundle.safetensors` (keys `group.name`) and `bundle.json` (what it is and what it was
made for).

A bundle holds the adapter alone, never the frozen model. `requires` says how much of the backbone must be the same:
"config" (the architecture and its latent space: an adapter that reads hidden states) or "latent" (the latent space
alone: an adapter of the velocity fits every model that shares a VAE and a text encoder). Other weights under the same
architecture draw a warning, not an error.

Beside them may lie `pytorch_lora_weights.safetensors` (`backbones.lora`), `verify.json` (`backbones.verify`) and
`README.md` (the card of a bundle that was pushed). A name of a bundle is a folder, the name of one that an installed
package ships, or a hub id, `org/name` or `org/name@revision`.

Files appear by rename, tensors first: a `bundle.json` always speaks of a complete `bundle.safetensors`, whose hash it
holds.
"""

import hashlib
import json
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load as parse_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor, nn

from backbones import hub, lora
from backbones.contract import Backbone

__all__ = ["Bundle", "build", "check", "load", "pull", "push", "read", "resolve", "save", "shipped"]

FORMAT = 1
KEYS = ("kind", "requires", "groups", "sha256", "backbone", "config")
MADE_FOR = ("id", "config_hash", "latent_hash", "backbone_digest", "spec")
REQUIRES = ("config", "latent")
TENSORS, META = "bundle.safetensors", "bundle.json"
CARD, SOURCE = "README.md", "source.json"
FILES = (META, TENSORS, CARD, "verify.json", *lora.FILES.values())  # what travels, and nothing else does
ADAPTERS, SHIPPED = "physbackbones.adapters", "physbackbones.bundles"


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle: `tensors[group]` is the state dict of a group, `meta` the whole of `bundle.json`, `source` the
    hub commit that it came from ("org/name@commit", empty for a folder of one's own).
    """

    kind: str
    tensors: dict[str, dict[str, Tensor]]
    meta: dict[str, Any]
    source: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config that the adapter was built with."""
        return self.meta["config"]

    @property
    def origin(self) -> dict[str, Any]:
        """Where the weights come from, for what is written beside results: their hash, backbone and steps."""
        return {
            "sha256": self.meta["sha256"],
            "made_for": {key: self.meta["backbone"][key] for key in ("id", "backbone_digest")},
            "steps": {stage["name"]: stage["steps"] for stage in self.meta["stages"]},
        }


def save(
    folder: str | Path,
    *,
    kind: str,
    groups: Mapping[str, Mapping[str, Tensor]],
    backbone: Backbone,
    config: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]] = (),
    requires: Literal["config", "latent"] = "config",
    lora_parts: Mapping[str, nn.Module] | None = None,
) -> Path:
    """Write a bundle and give its folder; ValueError for what would not come back: a group name with a dot, another
    `requires`, no `kind`, a bare pipeline as the backbone.

    `lora_parts` ({"transformer": module, "transformer_2": module}) are stock transformers whose trained LoRA is written
    beside it, in the files that diffusers' `load_lora_weights` takes (`backbones.lora.load` loads them all).
    """
    if requires not in REQUIRES or not kind:
        raise ValueError(f"expected a kind and requires among {', '.join(REQUIRES)}, got {kind!r} and {requires!r}")
    if not hasattr(backbone, "latent_hash"):
        raise ValueError(f"expected a backbone, got {type(backbone).__name__}: pass backbones.wrap(pipe)")
    bad = [g for g in groups if "." in g or not g]
    if bad:
        raise ValueError(f"expected group names without dots, got {', '.join(map(repr, bad))}")
    flat = {f"{g}.{n}": t.detach().cpu().contiguous() for g, state in groups.items() for n, t in state.items()}
    tensors = write_tensors(_unshared(flat))
    parts = lora.serialise(lora_parts or {})
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
        "lora": {file: hashlib.sha256(content).hexdigest() for file, content in parts.items()},
        "versions": {name: version(name) for name in ("physbackbones", "torch", "diffusers", "transformers")},
    }
    text = json.dumps(meta, indent=1) + "\n"
    return _write(Path(folder), {TENSORS: tensors, **parts, META: text.encode()})


def load(name: str | Path) -> Bundle:
    """Read a bundle by folder, shipped name or hub id; ValueError for a folder that holds none, another format, or
    files that are not its own.
    """
    folder = resolve(name)
    missing = [n for n in (META, TENSORS) if not (folder / n).is_file()]
    if missing:
        raise ValueError(
            f"expected a bundle folder with {META} and {TENSORS}, got {folder} without {' and '.join(missing)}"
        )
    try:
        meta = json.loads((folder / META).read_text())
    except ValueError as error:
        raise ValueError(f"{folder / META} is no JSON ({error}): copy the bundle again") from error
    if not isinstance(meta, dict):
        raise ValueError(f"expected an object in {folder / META}, got {type(meta).__name__}: copy the bundle again")
    if meta.get("format") != FORMAT:
        raise ValueError(
            f"expected bundle format {FORMAT}, got {meta.get('format')} in {folder}. Update physbackbones."
        )
    if lacking := [key for key in KEYS if key not in meta]:
        raise ValueError(f"expected the keys {', '.join(KEYS)} in {folder / META}, got it without {', '.join(lacking)}")
    made = meta["backbone"]
    if meta["requires"] not in REQUIRES or not isinstance(made, dict) or any(key not in made for key in MADE_FOR):
        raise ValueError(
            f"expected requires among {', '.join(REQUIRES)} and a backbone with {', '.join(MADE_FOR)} in"
            f" {folder / META}, got others: copy the bundle again"
        )
    content = (folder / TENSORS).read_bytes()
    if hashlib.sha256(content).hexdigest() != meta["sha256"]:
        raise ValueError(f"{folder / TENSORS} is not the file that {META} describes: copy the bundle again")
    tensors: dict[str, dict[str, Tensor]] = {g: {} for g in meta["groups"]}
    for key, value in parse_tensors(content).items():
        group, _, part = key.partition(".")
        if group not in tensors or not part:
            known = ", ".join(tensors)
            raise ValueError(
                f"{folder / TENSORS} holds {key!r}, expected names of the groups {known}, as `save` writes"
            )
        tensors[group][part] = value
    for file, sha in meta.get("lora", {}).items():
        if file not in lora.FILES.values() or not (folder / file).is_file():
            raise ValueError(f"{META} names the LoRA part {file!r}, which is not in {folder}: copy the bundle again")
        if hashlib.sha256((folder / file).read_bytes()).hexdigest() != sha:
            raise ValueError(f"{folder / file} is not the file that {META} describes: copy the bundle again")
    return Bundle(meta["kind"], tensors, meta, source=_source(folder))


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


def read(folder: str | Path | None, *, app: str, kinds: Sequence[str], shipped: Path) -> Bundle:
    """Read a bundle for the app of that name (none: the one that it ships), which takes bundles of these kinds.

    ValueError says where bundles are, and which kind this one is of.
    """
    folder = shipped if folder is None else Path(folder)
    if not (folder / META).exists():
        if folder == shipped:
            raise ValueError(f"no bundle is shipped in {folder} yet; train one with `{app} train`, pass --bundle DIR")
        inside = folder / "bundle"
        hint = (
            f"did you mean --bundle {inside}?"
            if (inside / META).exists()
            else f"`{app} train --out RUN` writes one into RUN/bundle, `{app} export RUN --out DIR` into DIR"
        )
        raise ValueError(f"expected a bundle folder ({META}, {TENSORS}), got {folder}; {hint}")
    found = load(folder)
    if found.kind not in kinds:
        known = " or ".join(map(repr, kinds))
        raise ValueError(f"expected a bundle of kind {known}, got {found.kind!r} in {folder}")
    return found


def build(bundle: Bundle, backbone: Backbone, *, make: Callable[..., Any] | None = None, **given: Any) -> Any:
    """Check the bundle and make its adapter, of the velocity or of the hidden states, its class found by entry point
    unless `make` (its `from_bundle`) says it; `given` goes there, too.

    ValueError names what to install, or says that the weights do not fit.
    """
    check(bundle, backbone)
    if make is not None:
        try:
            return make(bundle, backbone, **given)
        except RuntimeError as error:  # torch's, of another shape or name
            raise ValueError(
                f"the weights of the bundle do not fit this recipe; sizes and structure come from training: {error}"
            ) from None
    found = entry_points(group=ADAPTERS, name=bundle.kind)
    if not found:
        raise ValueError(
            f"no installed package knows the adapter kind {bundle.kind!r}: install the one that does, by its wheel or"
            f" with `uv pip install {shlex.quote(bundle.kind)}` where that name on the index is its own (this toolkit's"
            f" apps are not there); it registers under the entry-point group {ADAPTERS!r}."
        )
    return next(iter(found)).load().from_bundle(bundle, backbone)


def resolve(name: str | Path) -> Path:
    """Give the folder of a bundle: the folder itself, one that an installed package ships, or one pulled from the hub.

    A folder with a bundle wins over a shipped name, and both over the hub. ValueError when it is none of them.
    """
    folder = Path(name)
    if isinstance(name, Path) or (folder / META).is_file():
        return folder
    if any(entry.name == name for entry in entry_points(group=SHIPPED)):
        return shipped(name)
    if folder.exists():
        return folder
    found = hub.split_id(name)
    if found is None:
        known = ", ".join(sorted(e.name for e in entry_points(group=SHIPPED))) or "none"
        raise ValueError(
            f"expected a bundle's folder, the name of a shipped bundle ({known}) or a hub id (org/name), got {name!r}"
        )
    try:
        return pull(found[0], revision=found[1])
    except ValueError as error:
        raise ValueError(f"there is no folder {name!r} here, and as a hub id it failed: {error}") from error


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    branch: str | None = None,
    license: str | None = None,
    message: str = "Upload bundle",
    token: str | None = None,
) -> str:
    """Upload a bundle to the Hugging Face Hub and give "org/name@commit", the name that will always mean this state.

    Only the files of the bundle go, and a card is written from `bundle.json` unless the folder has a `README.md`. What
    the config says goes, too: look at it first. ValueError for a folder that holds no whole bundle, or a refusal.
    """
    if hub.split_id(repo_id) is None or "@" in repo_id:
        raise ValueError(f"expected a hub id such as 'org/name', got {repo_id!r}")
    folder = Path(folder)
    made = load(folder)
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    files.setdefault(CARD, hub.card(made.meta, repo_id, license=license).encode())
    commit = hub.upload(files, repo_id, message=message, private=private, branch=branch, token=token)
    return f"{repo_id}@{commit}"


def pull(
    repo_id: str, *, revision: str | None = None, into: str | Path | None = None, token: str | None = None
) -> Path:
    """Fetch a bundle from the hub and give its folder: the hub's cache, or a copy in `into` with the commit recorded.

    `revision` is a branch, tag or commit; whichever it is, the result is one commit (`load(folder).source`). Without a
    network the cache answers. ValueError when there is nothing, or no whole bundle.
    """
    if hub.split_id(repo_id) is None or "@" in repo_id:
        raise ValueError(f"expected a hub id such as 'org/name', got {repo_id!r}; a revision is revision='v1'")
    folder, commit = hub.download(repo_id, FILES, revision=revision, token=token)
    load(folder)
    if into is None:
        return folder
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    return _write(Path(into), files | {SOURCE: (json.dumps({"repo": repo_id, "commit": commit}) + "\n").encode()})


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


def _write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write the files by rename, `bundle.json` last, and take away what an earlier bundle left here."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ({*FILES, SOURCE} - {CARD, META, TENSORS}) - {*files}:
        (folder / name).unlink(missing_ok=True)
    for name in sorted(files, key=lambda name: name == META):
        part = folder / f"{name}.tmp"
        part.write_bytes(files[name])
        part.replace(folder / name)
    return folder


def _source(folder: Path) -> str:
    if (folder / SOURCE).is_file():
        about = json.loads((folder / SOURCE).read_text())
        if not isinstance(about, dict) or not {"repo", "commit"} <= about.keys():
            raise ValueError(f"expected repo and commit in {folder / SOURCE}: pull the bundle again")
        return f"{about['repo']}@{about['commit']}"
    found = hub.commit_of(folder)
    return "" if found is None else "@".join(found)


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
