"""A checkpoint: a folder that is there whole or not at all, and holds the trained groups and nothing frozen.

`checkpoints/step-00000500/` holds `state.json` (counters, order, what the run was told), `weights.safetensors` (keys
`group/parameter`), `optimizer.safetensors` (`group/parameter#exp_avg`), `ema.safetensors`, and `COMPLETE` with the size
of every file. It is written to a hidden folder, synced, and renamed; older ones are pruned only after that. Nothing is
unpickled.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import weights
from .guards import TrainingWarning
from .stage import Stage

__all__ = [
    "Change",
    "Checkpoint",
    "describe",
    "diff",
    "digest_of",
    "explained",
    "latest",
    "load",
    "name_of",
    "newest",
    "save",
    "sync",
]

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
    path = root / name_of(step)
    part = root / f".writing-{path.name}-{os.getpid()}"
    with explained(f"write the checkpoint {path}"):
        try:
            _write(part, path, state, tensors)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)  # a full disk needs the room
            raise
        _prune(root, keep)
    return path


def _write(part: Path, path: Path, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for name, group in tensors.items():
        save_file(_unshared(group), part / f"{name}.safetensors")
    (part / "state.json").write_text(json.dumps({"format": FORMAT, **state}, indent=1), encoding="utf-8")
    sizes = {file.name: file.stat().st_size for file in sorted(part.iterdir())}
    (part / "COMPLETE").write_text(json.dumps(sizes), encoding="utf-8")
    for file in part.iterdir():
        sync(file)
    sync(part)
    if path.exists():  # a damaged folder of the same step: the good one takes its place
        shutil.rmtree(path)
    part.replace(path)
    sync(path.parent)


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn the failure to write into one sentence with the remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else None
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        text = (
            f"could not {doing}: {why}; complete checkpoints stay: free space or make the folder writable, then resume"
        )
        raise (OSError(code, text) if code is not None else OSError(text)) from error


def name_of(step: int) -> str:
    """Return the folder's name of a global step.

    >>> name_of(500)
    'step-00000500'
    """
    return f"step-{step:08d}"


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


_REFUSED = ("name", "groups", "parameters", "data", "samples")
"""With another one of these the saved state means something else: weights or order would not fit."""
_SAFE = ("length",)


def digest_of(stage: Stage) -> str:
    """Return the digest of a stage's data, "" when it has none."""
    return str(getattr(stage.data, "digest", ""))


def newest(run: Path) -> tuple[str, dict[str, dict[str, Tensor]]]:
    """Read the weights of a run's newest checkpoint by group, and say its name; ValueError where there is none yet."""
    found = latest(run / "checkpoints")
    if found is None:
        raise ValueError(f"{run} has no whole checkpoint yet: let it train on, or resume it")
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in load(found).tensors["weights"].items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = value
    return found.name, groups


def describe(stage: Stage, groups: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Return what a checkpoint remembers of a stage, to be compared at a resume."""
    shapes = weights.tensors({name: groups[name] for name in stage.groups})
    return {
        "name": stage.name,
        "groups": dict(stage.groups),
        "parameters": {key: list(value.shape) for key, value in shapes.items()},
        "data": digest_of(stage),
        "samples": len(stage.data),
        "batch_size": stage.batch_size,
        "accumulate": stage.accumulate,
        "length": asdict(stage.length),
        "optim": asdict(stage.optim),
        "ramps": {name: asdict(ramp) for name, ramp in stage.ramps.items()},
        "unfreeze": dict(stage.unfreeze),
        "ema": asdict(stage.ema) if stage.ema else None,
        "handover": stage.handover,
    }


def diff(old: Mapping[str, Any], new: Mapping[str, Any], *, done: int) -> list[Change]:
    """Compare two descriptions of a run, of which the first `done` stages are finished.

    A finished stage cannot be changed any more; in the one under way, its weights and its data cannot; stages that are
    still to come may change freely.
    """
    pairs = [(key, old[key], new[key]) for key in ("seed", "world_size")]
    pairs += [
        (f"frozen.{name}", old["frozen"][name], new["frozen"][name]) for name in old["frozen"] if name in new["frozen"]
    ]
    changes = [Change(key, before, now, "refused") for key, before, now in pairs if before != now]
    for i, stage in enumerate(old["stages"][: done + 1]):
        if i >= len(new["stages"]):
            changes.append(Change(f"stages.{i}", stage["name"], None, "refused"))
            continue
        for key, value in stage.items():
            if value != (now := new["stages"][i].get(key)):
                refused = i < done or key in _REFUSED
                verdict = "refused" if refused else "safe" if key in _SAFE else "warned"
                changes.append(Change(f"stages.{i}.{key}", value, now, verdict))
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
    folders = sorted(root.glob("step-*"))
    whole = [path for path in folders if _damage(path) is None]  # a damaged one must not push out a good one
    for old in folders:
        if old in whole[-max(1, keep) :]:
            continue
        # COMPLETE goes first: a kill in the middle of a removal must not leave a folder that looks whole.
        (old / "COMPLETE").unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)
    for part in root.glob(".writing-*"):
        shutil.rmtree(part, ignore_errors=True)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
