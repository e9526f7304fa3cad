"""A checkpoint: a folder that is there whole or not at all, and holds the trained groups and nothing frozen.

`checkpoints/step-00000500/` holds `state.json` (counters, order, what the run was told), `weights.safetensors` (keys
`group/parameter`), `optimizer.safetensors` (`group/parameter#exp_avg`), `ema.safetensors`, and `COMPLETE` with the size of
every file. It is written to a hidden folder, synced, and renamed; older ones are pruned only after that. Nothing is unpickled.
"""

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file
from torch import Tensor

from .guards import TrainingWarning

__all__ = ["Change", "Checkpoint", "diff", "latest", "load", "save"]

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds: `tensors[file][key]`."""

    path: Path
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def save(
    root: Path, step: int, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], *, keep: int
) -> Path:
    """Write `root/step-XXXXXXXX` by rename, then remove all but the newest `keep` complete ones. Returns the folder."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"step-{step:08d}"
    part = root / f".writing-{path.name}-{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for name, group in tensors.items():
        save_file(_unshared(group), part / f"{name}.safetensors")
    (part / "state.json").write_text(json.dumps({"format": FORMAT, **state}, indent=1), encoding="utf-8")
    sizes = {file.name: file.stat().st_size for file in sorted(part.iterdir())}
    (part / "COMPLETE").write_text(json.dumps(sizes), encoding="utf-8")
    for file in part.iterdir():
        _sync(file)
    _sync(part)
    if path.exists():  # a damaged folder of the same step: the good one takes its place
        shutil.rmtree(path)
    part.replace(path)
    _sync(root)
    _prune(root, keep)
    return path


def latest(root: Path) -> Path | None:
    """Return the newest complete checkpoint under `root`, or None; warns about damaged ones that it passes over."""
    for path in sorted(root.glob("step-*"), reverse=True):
        if (why := _damage(path)) is None:
            return path
        warnings.warn(f"{path} is not a whole checkpoint ({why}): using the one before", TrainingWarning, stacklevel=2)
    return None


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; ValueError when it is damaged or of another format."""
    if (why := _damage(path)) is not None:
        raise ValueError(f"expected a complete checkpoint at {path}, but {why}; resume from another one")
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state["format"] != FORMAT:
        raise ValueError(f"{path} has checkpoint format {state['format']}, this version reads {FORMAT}")
    return Checkpoint(path, state, {file.stem: load_file(file) for file in path.glob("*.safetensors")})


@dataclass(frozen=True)
class Change:
    """One difference between the run that was saved and the one that wants to go on from it."""

    key: str
    old: Any
    new: Any
    verdict: Literal["safe", "warned", "refused"]

    def __str__(self) -> str:
        return f"{self.key}: {self.old!r} -> {self.new!r}"


_REFUSED = ("seed", "name", "groups", "parameters", "data", "samples", "world_size")
"""With another one of these, the saved state means something else: weights, order or random numbers would not fit."""
_SAFE = ("length",)


def diff(old: Mapping[str, Any], new: Mapping[str, Any], *, done: int) -> list[Change]:
    """Compare two descriptions of a run (see `loop.describe`), of which the first `done` stages are finished.

    A change in a finished stage cannot be made any more and is refused; stages that are still to come may change freely.
    """
    changes = [
        Change(key, old.get(key), new.get(key), "refused")
        for key in ("seed", "world_size")
        if old.get(key) != new.get(key)
    ]
    olds, news = old["stages"], new["stages"]
    for i, stage in enumerate(olds[: done + 1]):
        if i >= len(news):
            changes.append(Change(f"stages.{i}", stage["name"], None, "refused"))
            continue
        for key in stage:
            if stage[key] != news[i].get(key):
                refused = i < done or key in _REFUSED
                verdict = "refused" if refused else "safe" if key in _SAFE else "warned"
                changes.append(Change(f"stages.{i}.{key}", stage[key], news[i].get(key), verdict))
    return changes


def _unshared(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Safetensors refuses tensors that share memory (tied weights): each gets its own copy."""
    seen: set[int] = set()
    result = {}
    for key, tensor in group.items():
        tensor = tensor.detach().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        result[key] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return result


def _damage(path: Path) -> str | None:
    try:
        sizes = json.loads((path / "COMPLETE").read_text(encoding="utf-8"))
        wrong = [name for name, size in sizes.items() if (path / name).stat().st_size != size]
    except (OSError, ValueError, AttributeError) as error:
        return f"it is incomplete: {error}"
    return f"{wrong[0]} has another size than was written" if wrong else None


def _prune(root: Path, keep: int) -> None:
    for old in sorted(root.glob("step-*"))[: -max(1, keep)]:
        # COMPLETE goes first: a kill in the middle of a removal must not leave a folder that looks whole.
        (old / "COMPLETE").unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)
    for part in root.glob(".writing-*"):
        shutil.rmtree(part, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
