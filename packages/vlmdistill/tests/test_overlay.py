import pytest
import torch

from vlmdistill import Clip, overlay


def grey(f=4, y=8, x=12, fps=2.0):
    return Clip.at(torch.full((f, y, x, 3), 120, dtype=torch.uint8), fps)


def test_positive_cells_redden_negative_ones_turn_blue_and_zero_is_clear():
    values = torch.tensor([[[1.0, 0.0, -1.0]]])
    picture = overlay(grey(), values, torch.zeros(1)).int()
    left, middle, right = picture[..., :4, :], picture[..., 4:8, :], picture[..., 8:, :]
    assert (left[..., 0] > 120).all()
    assert (left[..., 2] < 120).all()
    assert (middle == 120).all()
    assert (right[..., 2] > 120).all()
    assert (right[..., 0] < 120).all()


def test_a_frame_shows_the_cell_nearest_in_time():
    values = torch.tensor([0.0, 1.0])[:, None, None]
    picture = overlay(grey(), values, torch.tensor([0.0, 1.4]))
    changed = (picture != 120).flatten(1).any(1).tolist()
    assert changed == [False, False, True, True]  # frames at 0, .5, 1, 1.5 s


def test_small_frames_are_enlarged_by_whole_pixels_and_the_grid_need_not_divide():
    picture = overlay(grey(), torch.rand(1, 3, 5), torch.zeros(1), scale=3)
    assert picture.shape == (4, 24, 36, 3)
    assert picture.dtype == torch.uint8


def test_maps_with_one_top_can_be_compared():
    weak, strong = torch.full((1, 1, 1), 0.1), torch.full((1, 1, 1), 1.0)
    own = [overlay(grey(), v, torch.zeros(1)) for v in (weak, strong)]
    assert torch.equal(*own)
    one = [overlay(grey(), v, torch.zeros(1), top=1.0) for v in (weak, strong)]
    assert one[0][..., 0].max() < one[1][..., 0].max()


def test_a_map_of_zeros_leaves_the_frames():
    assert torch.equal(overlay(grey(), torch.zeros(1, 2, 2), torch.zeros(1)), grey().frames)


@pytest.mark.parametrize("bad", [{"scale": 0}, {"opacity": 1.5}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match="expected scale"):
        overlay(grey(), torch.zeros(1, 2, 2), torch.zeros(1), **bad)
