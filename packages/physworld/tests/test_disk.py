"""Drawing and reading back are inverses."""

import numpy as np
import pytest

from physworld import disk


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("colour", disk.NAMES)
def test_a_drawn_disk_is_read_back_with_sub_pixel_centre_and_area(scale: int, colour: str) -> None:
    centre, radius = np.array([[[13.37, 18.21]]]), 3.4
    video = disk.paint(disk.disks(centre, np.array([radius]), scale), disk.rgb(colour))
    cover, residual = disk.unmix(video, disk.rgb(colour))
    (blob,) = disk.blobs(cover[0, 0], scale)
    assert abs(blob.y - 13.37) < 0.02
    assert abs(blob.x - 18.21) < 0.02
    assert blob.area == pytest.approx(np.pi * radius**2, rel=0.02)
    assert residual.max() < 0.006
    seen = disk.nearest_colour(video)
    assert set(np.unique(seen)) == {-1, disk.NAMES.index(colour)}


def test_two_touching_colours_are_unmixed_into_the_two_disks() -> None:
    centres = np.array([[[16.0, 12.0], [16.0, 18.5]]])
    cover = disk.disks(centres, np.array([3.0, 3.5]), 2)
    shares, _ = disk.unmix(disk.paint(cover, disk.rgb("red", "green")), disk.rgb("red", "green"))
    assert np.abs(shares - cover).max() < 0.08


def test_a_colour_that_is_not_there_lies_off_the_mixtures() -> None:
    video = disk.paint(disk.disks(np.array([[[16.0, 16.0]]]), np.array([5.0]), 1), disk.rgb("green"))
    assert disk.unmix(video, disk.rgb("red"))[1].max() > 0.2


def test_separate_components_are_counted_and_sorted_by_size() -> None:
    cover = disk.disks(np.array([[[8.0, 8.0], [22.0, 22.0]]]), np.array([2.5, 4.0]), 1)
    found = disk.blobs(cover[0].max(0), 1)
    assert len(found) == 2
    assert found[0].area > found[1].area
    assert found[0].y == pytest.approx(22.0, abs=0.05)


def test_a_box_covers_its_area() -> None:
    low, high = np.array([[[4.25, 6.5]]]), np.array([[[10.75, 9.75]]])
    assert disk.boxes(low, high, 1).sum() == pytest.approx(6.5 * 3.25, rel=0.01)
