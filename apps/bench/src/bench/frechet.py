"""Fréchet distance between two sets of features: FVD, FID and their kin, once the features are there.

    d^2 = |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))

tr (S_1 S_2)^(1/2) is the sum of the singular values of X_1 X_2^T / sqrt((n_1 - 1)(n_2 - 1)) of centred features X: no
matrix root is taken, nothing becomes complex, and fewer samples than dimensions are no special case.

What surprises: the distance depends on how many samples there are (it is biased upwards), on how frames were chosen and
resized, and on which port of which network made the features. So the protocol is part of the result, unknown parts are
said, and the distance between two halves of the reference stands beside as the floor of that many samples.

References: "GANs trained by a two time-scale update rule" (Heusel et al., 2017); "Towards accurate generative models of
video" (Unterthiner et al., 2018) for FVD; "Effectively unbiased FID" (Chong and Forsyth, 2020) for the bias.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Num

from bench import results

__all__ = ["PROTOCOL", "Features", "compare", "distance", "floor", "load"]

PROTOCOL = ("network", "layer", "frames", "resize", "rate")
"""What has to be known of features before two distances mean the same."""


@dataclass(frozen=True)
class Features:
    """Features (n, d), and what the file says of how they were made (see `PROTOCOL`)."""

    values: Float[np.ndarray, "n d"]
    protocol: dict[str, str]


def distance(a: Num[np.ndarray, "n d"], b: Num[np.ndarray, "m e"]) -> float:
    """Return the squared Fréchet distance of the two Gaussians, covariances over n - 1.

    ValueError for other dimensions, fewer than two samples, or numbers that are none.

    >>> distance(np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]]))
    9.0
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"expected features (n, d) and (m, d), n and m two or more, got {a.shape} and {b.shape}")
    a, b = a.astype(np.float64), b.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("expected finite features, got NaN or infinities")
    centred_a, centred_b = a - a.mean(0), b - b.mean(0)
    variances = (centred_a**2).sum() / (len(a) - 1) + (centred_b**2).sum() / (len(b) - 1)
    both = _shorter(centred_a) @ _shorter(centred_b).T / np.sqrt((len(a) - 1) * (len(b) - 1))
    root = np.linalg.svd(both, compute_uv=False).sum()
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return max(0.0, float(shift + variances - 2 * root))


def floor(reference: Num[np.ndarray, "n d"], seed: int = 0) -> float:
    """Return the distance between two random halves of the reference: what so many samples cannot go below."""
    order = np.random.default_rng(seed).permutation(len(reference))
    half = len(reference) // 2
    return distance(reference[order[:half]], reference[order[half : 2 * half]])


def load(path: Path, key: str = "") -> Features:
    """Read features from npy, npz or safetensors, never from a pickle. `key` names one of several arrays.

    The protocol is read from the safetensors' metadata, or from `NAME.json` beside the file.
    """
    try:
        match path.suffix:
            case ".npy":
                arrays, told = {"": np.load(path, allow_pickle=False)}, {}
            case ".npz":
                with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
                    arrays, told = {name: held[name] for name in held.files}, {}
            case ".safetensors":
                arrays, told = _safetensors(path)
            case other:
                raise ValueError(f"expected .npy, .npz or .safetensors, got {other or 'no suffix'}")
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"expected features at {path}, got {error}") from None
    if (key and key not in arrays) or (not key and len(arrays) != 1):
        raise ValueError(f"expected one of {', '.join(sorted(arrays))} in {path}, got {key!r}")
    values = np.asarray(arrays[key] if key else next(iter(arrays.values())))
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise ValueError(f"expected numbers (n, d) in {path}, got {values.dtype} {values.shape}")
    beside = path.with_suffix(".json")
    if beside.is_file():
        said = json.loads(beside.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise ValueError(f"expected an object with {', '.join(PROTOCOL)} in {beside}")
        told |= said
    return Features(values.astype(np.float64), {name: str(told[name]) for name in PROTOCOL if name in told})


def _shorter(centred: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "_ d"]:
    """A matrix with the same X^T X and no more rows than columns."""
    if len(centred) <= centred.shape[1]:
        return centred
    return np.asarray(np.linalg.qr(centred, mode="r"))


def _safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def compare(reference: Path, made: Path, *, key: str = "", name: str = "model") -> results.Result:
    """Measure two files of features; notes say what of the protocol is unknown, and where samples are few.

    ValueError where the two files say that they were made in different ways.
    """
    real, mine = load(reference, key), load(made, key)
    notes = []
    unknown = [part for part in PROTOCOL if part not in real.protocol or part not in mine.protocol]
    if unknown:
        notes.append(f"not stated by both files: {', '.join(unknown)}; compare with no published number")
    other = [part for part in PROTOCOL if part not in unknown and real.protocol[part] != mine.protocol[part]]
    if other:
        said = "; ".join(f"{part} {real.protocol[part]!r} and {mine.protocol[part]!r}" for part in other)
        raise ValueError(f"expected features made alike, got {said}")
    least = min(len(real.values), len(mine.values))
    if least <= mine.values.shape[1]:
        notes.append(
            f"{least} samples of {mine.values.shape[1]} dimensions: fewer samples than dimensions, biased upwards"
        )
    metrics = {"frechet": results.Metric(value=distance(real.values, mine.values), n=len(mine.values))}
    if len(real.values) >= 4:
        metrics["halves of the reference"] = results.Metric(value=floor(real.values), n=len(real.values) // 2)
    return results.Result(
        benchmark="frechet",
        title="Fréchet distance",
        prompt_set=results.PromptSet(name=f"features in {made.name}", count=len(mine.values)),
        rater=results.Rater(
            name=real.protocol.get("network", "features as given"),
            kind="formula",
            settings={**real.protocol, "reference": len(real.values), "dimensions": mine.values.shape[1]},
        ),
        systems=(results.System(name=name, metrics=metrics),),
        versions=results.versions(),
        notes=tuple(notes),
    )
