"""PISA: does a dropped object fall as it was filmed? Masks against masks.

Masks are npz files with the key `mask`, (frames, objects, h, w) or (frames, h, w). The dropped object is the one whose
highest positive point is topmost (`gt_annotation`), the last one where nothing is annotated. Frame i of the prediction
meets frame int(i fps_true / fps_made) of the truth.

What surprises: the official "L2" is a mean absolute coordinate error over sqrt(2) times the height, no Euclidean norm,
and frames in which the object has vanished are skipped by L2 and Chamfer, so that a model that loses its object early
is measured on the rest alone. `l2`, `chamfer` and `iou` are official; `l2_counted` and `chamfer_counted` give such a
frame the worst there is; `vanished` is the share of frames in which the object is in the truth and not in the
prediction, `made_up` the reverse.

References: "PISA experiments" (Li et al., 2025), its eval.py and utils/metrics.py.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy.spatial import KDTree

from bench import means, results
from trainers import show
from trainers.data import Skipped

__all__ = ["Pair", "dropped", "evaluate", "pairs", "score"]

WORST_L2 = 1 / np.sqrt(2)  # both coordinates a whole height off
WORST_CHAMFER = 2.0  # every point a diagonal off, both ways
UNITS = {
    "l2": "of sqrt(2) h",
    "chamfer": "of sqrt(2) h",
    "iou": "",
    "l2_counted": "of sqrt(2) h",
    "chamfer_counted": "of sqrt(2) h",
    "vanished": "share",
    "made_up": "share",
}

Masks = Bool[np.ndarray, "t h w"]


@dataclass(frozen=True)
class Pair:
    """Masks of one drop, filmed and made."""

    true: Path
    made: Path
    true_fps: float
    made_fps: float
    annotation: Path | None = None


def score(true: Masks, made: Bool[np.ndarray, "s y x"]) -> dict[str, float]:
    """Compare the object's masks frame by frame, in units of sqrt(2) times the picture's height.

    l2: mean over frames and axes of |centroid difference|. chamfer: mean distance to the nearest point of the other
    mask, both ways added. iou: 1 where both are empty. NaN for what no frame can tell.

    >>> ball = np.zeros((1, 8, 8), bool)
    >>> ball[0, 2:4, 2:4] = True
    >>> found = score(ball, np.roll(ball, 2, 2))
    >>> round(float(found["l2"] * np.sqrt(2) * 8), 6), found["iou"], found["vanished"]
    (1.0, 0.0, 0.0)
    """
    if true.shape != made.shape or not len(true):
        raise ValueError(f"expected masks of one shape and one frame at least, got {true.shape} and {made.shape}")
    unit = np.sqrt(2) * true.shape[1]
    there, found = true.any((1, 2)), made.any((1, 2))
    both = there & found
    l2, chamfer = np.full(len(true), np.nan), np.full(len(true), np.nan)
    for t in np.flatnonzero(both):
        a, b = np.argwhere(true[t]), np.argwhere(made[t])
        l2[t] = np.abs(a.mean(0) - b.mean(0)).mean() / unit
        chamfer[t] = (np.mean(KDTree(a).query(b)[0]) + np.mean(KDTree(b).query(a)[0])) / unit
    union, shared = (true | made).sum((1, 2)), (true & made).sum((1, 2))
    nobody = ~there & ~found
    iou = np.where(nobody, 1.0, shared / np.maximum(union, 1))
    counted = {"l2": np.where(both, l2, WORST_L2), "chamfer": np.where(both, chamfer, WORST_CHAMFER)}
    return {
        "l2": _mean(l2[both]),
        "chamfer": _mean(chamfer[both]),
        "iou": float(iou.mean()),
        **{f"{key}_counted": float(np.where(nobody, 0.0, values).mean()) for key, values in counted.items()},
        "vanished": float((there & ~found).mean()),
        "made_up": float((found & ~there).mean()),
    }


def dropped(annotation: Path) -> int:
    """Return which object falls: the one whose highest positive point (x, y) is topmost.

    ValueError for a file without `points`, each with a list `positive`.
    """
    try:
        points = json.loads(annotation.read_text(encoding="utf-8"))["points"]
        return int(np.argmin([min(y for _, y in one["positive"]) for one in points]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"expected points with positive ones in {annotation}, got {error!r}") from None


def pairs(table: Path) -> list[Pair]:
    """Read an official jsonl: gt_mask, gt_fps, pd_mask, pd_fps and, of filmed drops, gt_annotation.

    Paths are relative to the table's folder, and stay in it.
    """
    try:
        lines = [line for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"expected a jsonl of pairs at {table}, got {error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rates = float(row["gt_fps"]), float(row["pd_fps"])
            true, made = (_within(table.parent, row[key]) for key in ("gt_mask", "pd_mask"))
            said = _within(table.parent, row["gt_annotation"]) if row.get("gt_annotation") else None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} of {table} is no pair: {error!r}") from None
        if min(rates) <= 0:
            raise ValueError(f"expected positive rates in line {number} of {table}, got {rates}")
        found.append(Pair(true, made, *rates, said))
    if not found:
        raise ValueError(f"expected at least one pair in {table}")
    return found


def load(pair: Pair) -> tuple[Masks, Bool[np.ndarray, "s y x"]]:
    """Read the dropped object's masks of both, at the prediction's rate and as long as both last."""
    true, made = (_masks(path) for path in (pair.true, pair.made))
    which = dropped(pair.annotation) if pair.annotation is not None else -1
    for path, masks in ((pair.true, true), (pair.made, made)):
        if not -masks.shape[1] <= which < masks.shape[1]:
            raise ValueError(f"expected {which + 1} objects or more in {path}, got {masks.shape[1]}")
    at = (np.arange(len(made)) * (pair.true_fps / pair.made_fps)).astype(int)
    at = at[at < len(true)]
    return true[at, which], made[: len(at), which]


def evaluate(table: Path, *, name: str = "model", quiet: bool = False) -> tuple[results.Result, list[Skipped]]:
    """Score every pair of an official jsonl; a pair that cannot be read is listed."""
    listed = pairs(table)
    items: list[results.Item] = []
    skipped: list[Skipped] = []
    for number, pair in enumerate(show.track(listed, "pisa", quiet=quiet)):
        told: dict[str, Any] = {"true": pair.true.name, "made": pair.made.name}
        try:
            group = "filmed" if pair.annotation is not None else "simulated"
            items.append(
                results.Item(
                    id=f"{number:04d} {pair.made.stem}", group=group, values={**score(*load(pair))}, details=told
                )
            )
        except ValueError as error:
            skipped.append(Skipped(pair.made.name, str(error)))
    if not items:
        raise ValueError(f"no pair of {table} can be scored ({skipped[0].path}: {skipped[0].why})")
    metrics, groups = means.grouped(items, UNITS)
    result = results.Result(
        benchmark="pisa",
        title="PISA, dropped objects",
        prompt_set=results.PromptSet(
            name="pisa", count=len(listed), digest=results.digest([pair.true.name for pair in listed])
        ),
        rater=results.Rater(name="pisa", kind="formula"),
        systems=(results.System(name=name, metrics=metrics, groups=groups, items=tuple(items)),),
        versions=results.versions("scipy"),
        notes=tuple(f"left out: {one.path}: {one.why}" for one in skipped),
    )
    return result, skipped


def _masks(path: Path) -> Bool[np.ndarray, "t n h w"]:
    try:
        with np.load(path, allow_pickle=False) as held:
            stored = np.asarray(held["mask"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"expected an npz with the key mask at {path}, got {error!r}") from None
    if stored.size and not np.isin(stored, (0, 1)).all():  # officially 255 would be no object at all
        raise ValueError(f"expected masks of 0 and 1 in {path}, got {stored.min()} to {stored.max()}")
    masks = stored == 1
    masks = masks[:, None] if masks.ndim == 3 else masks
    if masks.ndim != 4 or not masks.size:
        raise ValueError(f"expected masks (frames, objects, h, w) in {path}, got {masks.shape}")
    return masks


def _within(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} leads out of the table's folder")
    return path


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
