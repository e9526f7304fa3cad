"""Pictures show each video whole, under its name, and appear whole or not at all."""

import numpy as np
import pytest
from PIL import Image

from trainers import pictures
from trainers.pictures import GAP, HEADER


def film(value, t=2, h=8, w=40):
    return np.full((t, h, w, 3), value, np.uint8)


def test_videos_stand_side_by_side_enlarged_and_apart_under_a_strip_of_names():
    both = pictures.beside([film(10), film(200)], ["base", "with"], scale=3)
    assert both.shape == (2, HEADER + 24, 120 + GAP + 120, 3)
    assert (both[:, HEADER:, :120] == 10).all()
    assert (both[:, HEADER:, -120:] == 200).all()
    assert (both[:, :, 120 : 120 + GAP] == 255).all()
    names = [both[0, :HEADER, :120], both[0, :HEADER, -120:]]
    assert all(name.min() < 100 and name.max() == 255 for name in names)  # ink on paper
    assert not np.array_equal(*names)
    with pytest.raises(ValueError, match="zip"):
        pictures.beside([film(0)], ["a", "b"])


def test_rows_write_one_picture_with_a_row_a_field_and_leave_nothing_else(tmp_path):
    field = np.linspace(-1, 3, 2 * 8 * 8).reshape(2, 8, 8)
    frames = [film(0, 1, 8, 8)[0]] * 2
    one = pictures.rows({"heat": field}, frames, ["a", "b"], tmp_path / "one.png", "t", signed=("heat",))
    two = pictures.rows({"heat": field, "flat": 0 * field}, frames, ["a", "b"], tmp_path / "two.png", "t")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.png", "two.png"]
    with Image.open(one) as small, Image.open(two) as large:
        assert large.height > 1.2 * small.height
        pixels = np.asarray(small.convert("RGB")).reshape(-1, 3).astype(int)
    blue, red = ((pixels[:, c] > pixels[:, 2 - c] + 60).sum() for c in (2, 0))
    assert red > 3 * blue > 0  # around white: -1 is as pale as +1, +3 is deep


@pytest.mark.parametrize("size", [(8, 8), (8, 16)])
def test_a_field_stands_exactly_below_the_frame_it_belongs_to(tmp_path, size):
    green = np.broadcast_to(np.uint8([0, 255, 0]), (*size, 3))
    none = np.zeros((3, *size))
    path = pictures.rows(
        {"heat": none, "a longer name": 1e6 + none}, [green] * 3, ["a", "b", "c"], tmp_path / "a.png", "t"
    )
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB"))

    def columns(colour):
        there = np.flatnonzero((pixels == colour).all(-1).sum(0) > 5)
        parts = np.split(there, np.flatnonzero(np.diff(there) > 2) + 1)
        return [(part[0], part[-1]) for part in parts]

    frames, maps = columns((0, 255, 0)), columns((68, 1, 84))  # viridis begins there
    assert len(frames) == 3
    assert np.abs(np.subtract(frames, maps[:3])).max() <= 1
