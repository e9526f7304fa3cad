"""Negative controls: videos that a metric of motion must refuse.

`static` repeats the first frame, `reversed_` runs time backwards (correct physics where the law is reversible),
`shuffled` puts the frames into a random order that keeps none in its place. Any array whose first axis is time.
"""

import numpy as np
from jaxtyping import Num


def static(video: Num[np.ndarray, "t *rest"]) -> Num[np.ndarray, "t *rest"]:
    """The first frame, as often as there are frames."""
    return np.repeat(video[:1], len(video), 0)


def reversed_(video: Num[np.ndarray, "t *rest"]) -> Num[np.ndarray, "t *rest"]:
    """The frames from last to first."""
    return video[::-1].copy()


def shuffled(video: Num[np.ndarray, "t *rest"], seed: int) -> Num[np.ndarray, "t *rest"]:
    """The frames in a random order in which no frame stays where it was."""
    rng = np.random.default_rng(seed)
    here = np.arange(len(video))
    while len(video) > 1:
        order = rng.permutation(here)
        if (order != here).all():
            return video[order]
    return video.copy()
