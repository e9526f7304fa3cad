"""What a run says: both scores with intervals, by scenario, side and category, and what standing still would get.

Beside the schema of every result the file has the keys `score`, `verified`, `physical_variance` and `per_view` at the
top.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from bench import results
from bench.physics_iq.films import GENERATED, LEGEND
from bench.physics_iq.layout import Survey, View, official_name
from bench.physics_iq.measure import Masks, Measured
from bench.physics_iq.overlap import Comparison
from bench.physics_iq.score import Scores, score, verified_terms

__all__ = ["result", "table"]

RESAMPLES = 4000
LEAST_SCENARIOS = 8
"""Below, an interval says little and none is given: as everywhere in `bench`."""
PARTS = ("spatial", "spatiotemporal", "weighted", "mse")
SERIES = (
    ("spatiotemporal_iou", "IoU with take 1", "should be as high as that of take 2"),
    ("mse", "MSE to take 1", "should be as low as that of take 2"),
)


def result(
    found: Survey,
    measured: Mapping[View, Measured],
    *,
    name: str,
    masks: Masks,
    films: Mapping[View, Mapping[str, str]] | None = None,
    seed: int = 0,
) -> results.PhysicsIQResult:
    """Sum up a run of the generated videos called `name`; `films` are files by name, inside the result's folder.

    Intervals are 95 % bootstrap over scenarios, whose views stay together: of n scenarios n - 1 are drawn.
    """
    views, ones = list(measured), list(measured.values())
    mine, still = _scores(ones, "generated"), _scores(ones, "still")
    low_high = _intervals(views, ones, seed)
    told = [_row(view, one) for view, one in measured.items()]
    system = results.System(
        name=name,
        kind="generated videos",
        metrics=_metrics(mine, len(views), low_high),
        groups=_groups(views, ones, "generated"),
        items=tuple(_item(row, (films or {}).get(view, {})) for view, row in zip(views, told, strict=True)),
        details={"variances": dict(mine.variances), "score_before_clipping": mine.raw},
    )
    frozen = results.System(
        name="take 1's first frame, held",
        role="control",
        kind="static",
        metrics=_metrics(still, len(views), {}),
        groups=_groups(views, ones, "still"),
    )
    return results.PhysicsIQResult(
        benchmark="physics-iq",
        title="Physics-IQ",
        prompt_set=results.PromptSet(
            name=f"physics-iq, {found.scenarios} scenarios",
            count=len(views),
            digest=results.digest([official_name(view) for view in views]),
        ),
        rater=results.Rater(
            name="physics-iq", kind="formula", settings={"masks": masks, "fps": found.fps, "frames": found.frames}
        ),
        systems=(system, frozen),
        settings={"seed": seed, "blended_from": found.filmed},
        versions=results.versions("opencv-python-headless"),
        notes=(*found.notes, *_warnings(mine, still, masks), *([f"what moves: {LEGEND}"] if films else [])),
        score=mine.original,
        verified=mine.verified,
        physical_variance=mine.physical_variance,
        per_view=tuple(told),
    )


def _warnings(mine: Scores, still: Scores, masks: Masks) -> list[str]:
    static = "nothing" if still.original is None else f"{still.original:.2f}"
    said = [
        f"a frozen clip does not score 0: repeating take 1's first frame gets {static} (original) and "
        f"{still.verified:.2f} (Verified) here, because frames in which nothing moves agree"
    ]
    if mine.original is None:
        said.append("the two real takes share no motion, so that the original score divides by zero: it is left out")
    if masks == "exact":
        said.append("masks are exact; the official script cuts them from a lossy video: no number for the board")
    return said


def _scores(ones: Sequence[Measured], which: str) -> Scores:
    return score([getattr(one, which) for one in ones], [one.takes for one in ones])


def _metrics(scores: Scores, n: int, low_high: Mapping[str, tuple[float, float]]) -> dict[str, results.Metric]:
    def metric(value: float | None, key: str, unit: str) -> results.Metric:
        low, high = low_high.get(key, (None, None))
        how = "bootstrap over scenarios" if key in low_high else ""
        return results.Metric(value=value, n=n, low=low, high=high, interval=how, unit=unit)

    return {
        "score": metric(scores.original, "score", "of 100"),
        "verified": metric(scores.verified, "verified", "of 100"),
        **{name: metric(scores.means[name], name, "") for name in PARTS},
    }


def _groups(views: Sequence[View], ones: Sequence[Measured], which: str) -> dict[str, dict[str, results.Metric]]:
    """Both scores and their parts by category, side and scenario."""
    found: dict[str, list[Measured]] = {}
    for view, one in zip(views, ones, strict=True):
        for group in (view.category, view.view, view.scenario):
            found.setdefault(group, []).append(one)
    return {group: _metrics(_scores(members, which), len(members), {}) for group, members in sorted(found.items())}


def _row(view: View, one: Measured) -> dict[str, Any]:
    return {
        "number": view.number,
        "scenario": view.scenario,
        "view": view.view,
        "category": view.category,
        "video": view.generated.name,
        **_told("", one.generated),
        **_told("variance_", one.takes),
        "verified": _verified(one.generated, one.takes),
        "verified_terms": verified_terms(one.generated, one.takes),
        "static_verified": _verified(one.still, one.takes),
        "hashes": one.hashes,
    }


def _told(prefix: str, clip: Comparison) -> dict[str, Any]:
    """A comparison under the names of the official table, means first, then frame by frame."""
    return {
        f"{prefix}spatial_iou": clip.spatial,
        f"{prefix}spatiotemporal_iou": float(np.mean(clip.spatiotemporal)),
        f"{prefix}weighted_spatial_iou": clip.weighted,
        f"{prefix}mse": float(np.mean(clip.mse)),
        f"{prefix}frames": {"spatiotemporal_iou": list(clip.spatiotemporal), "mse": list(clip.mse)},
    }


def _item(row: Mapping[str, Any], films: Mapping[str, str]) -> results.Item:
    keys = ("spatial_iou", "spatiotemporal_iou", "weighted_spatial_iou", "mse", "verified", "static_verified")
    return results.Item(
        id=f"{row['number']}_{row['view']}_{row['scenario']}",
        group=row["category"],
        values={key: row[key] for key in keys},
        video=films.get(GENERATED),
        pictures={name: path for name, path in films.items() if name != GENERATED},
        details={"series": [_series(row, *one) for one in SERIES]} if films else {},
    )


def _series(row: Mapping[str, Any], key: str, name: str, words: str) -> dict[str, Any]:
    """A figure frame by frame, beside what take 2 gets."""
    values, expects = (row[f"{prefix}frames"][key] for prefix in ("", "variance_"))
    return {"name": name, "unit": "", "values": values, "expects": expects, "words": words, "expected": "take 2"}


def _verified(clip: Comparison, takes: Comparison) -> float:
    return 100 * float(np.mean(list(verified_terms(clip, takes).values())))


def _intervals(views: Sequence[View], ones: Sequence[Measured], seed: int) -> dict[str, tuple[float, float]]:
    """2.5 and 97.5 % of both scores over resampled scenarios; {} below `LEAST_SCENARIOS`."""
    names = sorted({view.scenario for view in views})
    if len(names) < LEAST_SCENARIOS:
        return {}
    rows = np.array([_terms(one) for one in ones])
    of = np.array([view.scenario for view in views])
    scenarios = np.array([rows[of == name].mean(0) for name in names])
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names) - 1, np.full(len(names), 1 / len(names)), size=RESAMPLES) / (len(names) - 1)
    means = draws @ scenarios
    ratios = means[:, :3] / np.maximum(means[:, 4:7], 1e-8)
    ends = {
        "score": np.clip(100 * (ratios.mean(1) - (means[:, 3] - means[:, 7])), 0, 100),
        "verified": means[:, 8],
    }
    return {key: (float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))) for key, drawn in ends.items()}


def _terms(one: Measured) -> list[float]:
    """ST, S, W, MSE of the generated clip, then of the takes, then the view's Verified score."""
    both = [
        value
        for clip in (one.generated, one.takes)
        for value in (float(np.mean(clip.spatiotemporal)), clip.spatial, clip.weighted, float(np.mean(clip.mse)))
    ]
    return [*both, _verified(one.generated, one.takes)]


def table(shown: results.Result) -> Table:
    """Both scores of all views, by category and by side, beside what standing still gets."""
    mine, still = shown.systems
    made = Table(title="Physics-IQ", title_justify="left")
    for column in ("", "views", "original", "Verified", "spatial", "spatiotemporal", "weighted", "MSE"):
        made.add_column(column, justify="left" if not column else "right")
    sides = sorted(name for name in mine.groups if name.startswith("perspective-"))
    kinds = [name for name in mine.groups if name in {item.group for item in mine.items}]
    for name, metrics in (
        (f"[bold]{escape(mine.name)}[/]", mine.metrics),
        ("static", still.metrics),
        *((escape(name), mine.groups[name]) for name in (*kinds, *sides)),
    ):
        score, verified = metrics["score"], metrics["verified"]
        parts = (metrics[part].value for part in PARTS)
        made.add_row(name, str(score.n), _with(score), _with(verified), *(f"{part:.4f}" for part in parts))
    return made


def _with(metric: results.Metric) -> str:
    if metric.value is None:
        return "-"
    ends = "" if metric.low is None else f" [{metric.low:.1f}, {metric.high:.1f}]"
    return f"{metric.value:.2f}{escape(ends)}"
