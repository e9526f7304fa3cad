"""Forces: angles, the lower left origin, the way of a point, constant wind, and tables in the data sets' layout."""

import pytest
import torch

from phantom.force import Injector, Point, Wind, parse_point, parse_wind, read_forces, tensor

H, W = 48, 72


def centre(frame):
    """Centre of mass (x from the left, y from below) in fractions."""
    y, x = (torch.arange(n) + 0.5 for n in frame.shape)
    mass = frame.sum()
    return float((frame.sum(0) * x).sum() / mass / W), 1 - float((frame.sum(1) * y).sum() / mass / H)


def test_a_point_force_begins_at_its_point_counted_from_the_lower_left():
    spot = tensor(Point(0.25, 0.75, 0, 0.5), 9, H, W)
    assert spot.shape == (3, 9, H, W)
    assert torch.equal(spot[0], spot[1])
    assert torch.equal(spot[0], spot[2])
    assert centre(spot[0, 0]) == pytest.approx((0.25, 0.75), abs=0.01)
    assert float(spot.max()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("angle", "way"), [(0, (1, 0)), (90, (0, 1)), (180, (-1, 0)), (270, (0, -1)), (450, (0, 1))])
def test_angles_turn_from_the_right_upwards(angle, way):
    spot = tensor(Point(0.5, 0.5, angle, 0.0), 5, H, W)[0]
    (x0, y0), (x1, y1) = centre(spot[0]), centre(spot[-1])
    moved = torch.tensor([(x1 - x0) * W, (y1 - y0) * H])
    assert torch.allclose(moved, W / 8 * torch.tensor(way, dtype=torch.float32), atol=0.3)


def test_a_stronger_force_moves_farther_from_an_eighth_to_half_of_the_width_and_evenly():
    ways = []
    for strength in (0.0, 0.5, 1.0):
        spot = tensor(Point(0.2, 0.5, 0, strength), 5, H, W)[0]
        at = [centre(frame)[0] for frame in spot]
        ways.append(at[-1] - at[0])
        steps = torch.tensor(at).diff()
        assert torch.allclose(steps, steps.mean().expand(4), atol=1e-3)
    assert ways == pytest.approx([0.125, 0.3125, 0.5], abs=0.01)


def test_the_spot_s_width_is_twenty_pixels_of_480():
    spot = tensor(Point(0.5, 0.5, 0, 0.5), 1, 480, 720)[0, 0]
    assert float(spot.sum()) == pytest.approx(2 * torch.pi * 20**2, rel=0.01)


def test_wind_is_the_same_everywhere_and_at_all_times():
    wind = tensor(Wind(angle=180, strength=0.25), 3, 4, 5)
    assert torch.allclose(wind[:, 0, 0, 0], torch.tensor([-0.5, -1.0, 0.0]), atol=1e-6)
    assert torch.equal(wind, wind[:, :1, :1, :1].expand_as(wind))


def test_an_injector_is_silent_at_the_start_and_places_a_force_where_it_is():
    torch.manual_seed(0)
    injector = Injector(16, fine=4)
    force = tensor(Point(0.125, 0.875, 0, 0.0), 17, 32, 32)[None]
    assert not bool(injector(force, (5, 4, 4)).any())
    with torch.no_grad():
        injector.out.weight.normal_()
        injector.inside.bias.zero_()
    felt = injector(force, (5, 4, 4)).square().sum(-1).unflatten(1, (5, 4, 4))
    assert int(felt[0, 0].argmax()) == 0  # upper left cell: low x, high y from below
    with pytest.raises(ValueError, match=r"expected a force \(b, 3, 4 x 4 \+ 1 frames"):
        injector(force[:, :, :16], (5, 4, 4))


def test_the_command_line_s_forces_are_read_or_refused():
    assert parse_point("0.5,0.64,180,0.1") == Point(0.5, 0.64, 180.0, 0.1)
    assert parse_wind("90,0.5") == Wind(90.0, 0.5)
    for text, why in (("0.5,0.5,0", "expected x,y,angle,strength"), ("2,0,0,0", "expected x within 0 to 1, got 2"),
                      ("0,0,nan,0", "expected a finite angle"), ("0,0,0,7", "strength within 0 to 1")):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            parse_point(text)
    with pytest.raises(ValueError, match="expected angle,speed"):
        parse_wind("up")


def test_a_table_of_forces_is_read_in_the_data_sets_layout(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"")
    table = tmp_path / "forces.csv"
    table.write_text(
        "video,angle,force,coordx,coordy,width,height,caption\n"
        "a.mp4,180.0,10,371,305,720,480,a rose\n"
        "b.mp4,0,30,72,48,720,480,a ball\n"
        "c.mp4,0,30,72,48,720,480,not there\n"
        "../out.mp4,0,30,72,48,720,480,outside\n"
        "a.mp4,x,30,72,48,720,480,no angle\n"
        "a.mp4,0,30,900,48,720,480,off the picture\n"
        "a.mp4,0,30,1,48,720,480,\n"
    )
    found, notes = read_forces(table)
    assert [(p.path.name, p.caption) for p in found] == [("a.mp4", "a rose"), ("b.mp4", "a ball")]
    assert found[0].force == Point(371 / 720, 305 / 480, 180.0, 0.0)  # the weakest of the table
    assert found[1].force.strength == 1.0
    assert len(notes) == 5
    assert "line 4: there is no file" in notes[0]
    assert "lies outside" in notes[1]
    wind = tmp_path / "wind.csv"
    wind.write_text("image,angle,speed,caption\na.mp4,90,3,a flag\n")
    assert read_forces(wind)[0][0].force == Wind(90.0, 0.5)
    (tmp_path / "empty.csv").write_text("video,angle\n")
    with pytest.raises(ValueError, match="none of the 0 rows"):
        read_forces(tmp_path / "empty.csv")
    with pytest.raises(ValueError, match="cannot be read"):
        read_forces(tmp_path / "nowhere.csv")


def test_a_force_of_zeros_is_none_whatever_the_layers_learnt():
    torch.manual_seed(0)
    injector = Injector(16, fine=4)
    with torch.no_grad():
        for p in injector.parameters():
            p.normal_()
    force = torch.stack([torch.zeros(3, 17, 32, 32), tensor(Point(0.5, 0.5, 0, 1.0), 17, 32, 32)])
    nothing, something = injector(force, (5, 4, 4))
    assert not bool(nothing.any())
    assert bool(something.any())


def test_every_token_hears_which_way_a_push_goes_and_its_own_hears_it_at_the_start():
    torch.manual_seed(0)
    injector = Injector(64, fine=8, rows=4)
    there, back = (tensor(Point(0.5, 0.5, angle, 1.0), 17, 32, 32) for angle in (0, 180))
    force = torch.stack([there, back])
    with torch.no_grad():
        injector.out_around.weight.normal_()
    right, left = injector(force, (5, 4, 4))
    assert bool(((right - left).abs().amax(-1) > 0.1).all())
    seen = []
    injector.inside.register_forward_hook(lambda _, __, out: seen.append(out))
    injector.around.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        injector(force, (5, 4, 4))
    for felt in seen:
        assert 0.4 < float(felt.square().mean(-1).max().sqrt()) < 2
