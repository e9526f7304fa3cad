"""Decision 12: real clips pass; still, reversed and shuffled ones do not. 64 clips of the test split a mechanism."""

import numpy as np
import pytest

from physworld import MECHANISMS, controls, metrics, simulate_many
from physworld.metrics import Thresholds

CLIPS = 64
IRREVERSIBLE = ("thermal", "phase_change", "fluid", "compressible_flow")


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_real_clips_pass_and_negative_controls_do_not(mechanism: str) -> None:
    shipped = Thresholds.load()  # fitted on the validation split
    clips = simulate_many(mechanism, range(CLIPS), split="test")

    def share(change: object, only: str | None = None) -> float:
        assert callable(change)
        chosen = [clip for clip in clips if only is None or clip.scenario == only]
        assert len(chosen) >= CLIPS // 4
        found = [metrics.measure(clip, change(clip.video)) for clip in chosen]
        return float(np.mean([shipped.passes(mechanism, measures) for measures in found]))

    assert share(lambda video: video) >= 0.95
    assert share(controls.static) == 0.0
    assert share(lambda video: controls.shuffled(video, 7)) <= 0.10
    if mechanism in IRREVERSIBLE:
        assert share(controls.reversed_) <= 0.10
    if mechanism == "collision":
        assert share(controls.reversed_, only="sticks") <= 0.10
