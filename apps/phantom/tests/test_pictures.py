"""Pictures: z as colours over time, a force as an arrow where it acts."""

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from phantom import pictures
from phantom.force import Point, Wind


def test_colours_are_the_three_strongest_channels_each_over_its_own_range():
    z = (
        torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(0))
        * torch.tensor([9.0, 3, 1, 1, 1])[:, None, None, None]
    )
    drawn = pictures.colours(z)
    assert (drawn.shape, drawn.dtype) == ((4, 6, 6, 3), np.uint8)
    assert drawn.reshape(-1, 3).min(0).tolist() == [0, 0, 0]
    assert drawn.reshape(-1, 3).max(0).tolist() == [255, 255, 255]
    assert np.array_equal(drawn, pictures.colours(torch.cat([z[:3] * 7 + 2, z[3:] * 0])))
    assert pictures.colours(torch.zeros(3, 1, 2, 2)).max() == 0  # a constant has no range
    assert pictures.colours(z[:1]).shape == (4, 6, 6, 3)  # one channel is grey


def test_the_physics_latent_is_drawn_under_the_frames_of_its_times(make, recipe, tmp_path):
    z = torch.randn(8, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    film = np.arange(17, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(32, 2).repeat(3, 3) * 15
    path = pictures.physics(z, film, make(recipe), tmp_path / "z.png", "a ball $x$ is thrown")
    picture = imread(path)
    assert picture.shape[1] > 1.5 * picture.shape[0]  # five columns, two rows
    assert [p.name for p in tmp_path.iterdir()] == ["z.png"]


@pytest.mark.parametrize("force", [Point(0.25, 0.75, 90, 1.0), Point(0.95, 0.5, 0, 1.0), Wind(180, 0.5)], ids=str)
def test_a_force_is_an_arrow_over_the_first_frame(force, tmp_path):
    film = np.full((2, 32, 32, 3), (0, 0, 200), np.uint8)
    picture = imread(pictures.pushed(force, film, tmp_path / "force.png"))[..., :3]
    blue = np.argwhere((picture[..., 2] > 0.7) & (picture[..., 0] < 0.1))
    (top, left), (bottom, right) = blue.min(0), blue.max(0)
    inside = picture[top : bottom + 1, left : right + 1].min(-1)
    y, x = np.argwhere(inside > 0.9).T / inside.shape[0]
    if isinstance(force, Wind):
        assert len(np.unique((4 * y).astype(int))) == 4  # arrows all over
    elif force.angle == 90:
        assert x.mean() == pytest.approx(0.25, abs=0.03)
        assert y.max() == pytest.approx(0.25, abs=0.03)  # from its point upwards, to the border
        assert y.min() < 0.04
    else:
        assert x.min() == pytest.approx(0.95, abs=0.03)
        assert y.mean() == pytest.approx(0.5, abs=0.03)
