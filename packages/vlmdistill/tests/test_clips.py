import pytest
import torch

from vlmdistill import Clip
from vlmdistill.clips import sample


def frames(f=5, y=8, x=8):
    return torch.zeros(f, y, x, 3, dtype=torch.uint8)


@pytest.mark.parametrize("fps", [8.0, 16.0, 29.97])
@pytest.mark.parametrize("seconds", [4.0, 9.5])
def test_frames_are_near_two_a_second_and_reach_from_the_first_to_the_last(fps, seconds):
    times_s = torch.arange(int(seconds * fps)) / fps
    chosen = sample(times_s)
    assert chosen[0] == 0
    assert chosen[-1] == len(times_s) - 1
    assert len(chosen) % 2 == 0
    rate = (len(chosen) - 1) / float(times_s[-1])
    assert 1.5 < rate < 2.2
    assert times_s[chosen].diff().std() < 1.0 / fps


def test_uneven_times_are_read_by_time_and_not_by_index():
    dense, sparse = torch.arange(0, 1, 0.05), torch.arange(1, 11, 0.5)  # half of the frames are in the first second
    times_s = torch.cat([dense, sparse])
    gaps = times_s[sample(times_s)].diff()
    assert gaps.max() < 0.8
    assert gaps.min() > 0.3


def test_no_frame_is_taken_twice_where_times_bunch():
    times_s = torch.tensor([0.0, 0.01, 0.02, 0.03, 5.0, 10.0])
    chosen = sample(times_s)
    assert (chosen.diff() > 0).all()
    assert len(chosen) == 6


@pytest.mark.parametrize(("f", "expected"), [(1, [0, 0]), (2, [0, 1]), (3, [0, 2]), (4, [0, 1, 2, 3])])
def test_short_clips_give_whole_groups(f, expected):
    assert sample(torch.arange(f) / 4.0).tolist() == expected


def test_long_clips_are_bounded():
    assert len(sample(torch.arange(10_000) / 10.0, most=64)) == 64


def test_a_clip_of_nothing_has_no_video_tokens():
    with pytest.raises(ValueError, match=r"at least one frame.*no video tokens"):
        Clip(frames(0), torch.zeros(0))


@pytest.mark.parametrize("times", [[0.0, 1.0, 1.0, 2.0, 3.0], [0.0, 1.0, float("nan"), 2.0, 3.0]])
def test_times_that_cannot_be_are_refused(times):
    with pytest.raises(ValueError, match="finite and strictly increasing"):
        Clip(frames(), torch.tensor(times))


def test_a_rate_is_positive():
    with pytest.raises(ValueError, match="fps > 0"):
        Clip.at(frames(), 0.0)
