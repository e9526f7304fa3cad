"""The overview picture holds the frames themselves."""

import numpy as np
from matplotlib.image import imread

from bench import picture


def test_frames_of_a_strip_are_pixel_copies_in_order():
    film = np.arange(17, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)
    row = picture.strip(film)
    step = picture.SIDE + picture.GAP
    assert [int(row[0, i * step, 0]) for i in range(picture.FRAMES)] == [0, 4, 8, 12, 16]
    assert (row[:, step - 1] == picture.WHITE).all()


def test_the_picture_has_a_block_for_real_clips_and_one_for_each_system(folder, tmp_path):
    two = picture.save_picture(folder, tmp_path / "two.png", ("real", "base"))
    three = picture.save_picture(folder, tmp_path / "out" / "three.png")
    widths = [imread(path).shape[1] for path in (two, three)]
    assert widths[1] > 1.4 * widths[0]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["three.png"]
