"""The evenness of a motion in time: the figures that a frozen, skipped, doubled or blinked frame cannot hide from.

A law that is fitted to a whole clip averages over its frames, so that one wrong frame drowns. These figures hold the
worst frame, and they compare each frame with its neighbours alone.
"""

import numpy as np
from jaxtyping import Float, Num

STILL = 0.02
"""A step below this share of the mean one counts as none; our choice."""


def pace(field: Num[np.ndarray, "t h w"], *, turns: bool = False) -> dict[str, float]:
    """How evenly a picture changes, from the root mean square change between frames; all as natural logarithms.

    `uneven`: greatest ratio of the change of one step to that of the next one. `stutter`: the same for changes over two
    frames, which autoencoders blur less; what turns round comes back to where it was, so with `turns` two single steps
    are taken together instead. `jump`: greatest step over the median one. No change counts as STILL of the mean one.

    >>> {name: round(value, 2) for name, value in pace(np.array([0.0, 1.0, 2.0, 4.0])[:, None, None]).items()}
    {'uneven': 0.68, 'stutter': 0.4, 'jump': 0.68}
    """
    steps, two = _changes(field, 1), _changes(field, 2)
    if turns:
        two = np.hypot(steps[1:], steps[:-1])
    return {
        "uneven": _worst_ratio(steps),
        "stutter": _worst_ratio(two),
        "jump": float(np.log(steps.max()) - np.median(np.log(steps))),
    }


def _changes(field: Num[np.ndarray, "t h w"], lag: int) -> Float[np.ndarray, " s"]:
    size = np.sqrt(np.square(field[lag:].astype(np.float64) - field[:-lag]).mean((1, 2)))
    return size + STILL * size.mean() + 1e-6


def _worst_ratio(sizes: Float[np.ndarray, " s"]) -> float:
    return float(np.abs(np.diff(np.log(sizes))).max(initial=0.0))


def jolt(residual: Float[np.ndarray, "t n"]) -> float:
    """Greatest second difference in time of what a fitted law leaves over, the n components taken together."""
    return float(np.linalg.norm(np.diff(residual, 2, axis=0), axis=-1).max(initial=0.0))
