"""Laws of the pictures: sizes of fields, names over videos, one row a field, and a unit for every one."""

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from pila import pictures
from pila.bank import SLOTS


def test_the_size_of_a_tensor_counts_its_off_diagonal_twice_and_a_scalar_keeps_its_sign():
    one = torch.ones(1, 1, 1)
    assert pictures.size(torch.stack([3 * one, 4 * one]), "velocity").item() == pytest.approx(5)
    shear = torch.stack([0 * one, 0 * one, one])  # yx = xy = 1
    assert pictures.size(shear, "strain").item() == pytest.approx(2**0.5)
    assert pictures.size(-one[None], "pressure").item() == -1


def test_every_field_has_a_unit_and_a_row_under_the_video(trained, backbone, tmp_path):
    assert set(pictures.UNITS) == set(SLOTS)
    with torch.no_grad():
        text = backbone.embed(["two balls collide"])
        x_s, v = torch.randn(2, 1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(0))
        a = trained.anatomy(x_s, v, torch.full((1,), 0.3), text, torch.eye(8)[[5]])
    film = np.zeros((17, 32, 32, 3), np.uint8)
    fields, experts = pictures.draw(a, trained, film, tmp_path / "x.mp4", about="a test")
    assert (fields.name, experts.name) == ("x-fields.png", "x-experts.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x-experts.png", "x-fields.png"]
    tall = [imread(p).shape[0] for p in (fields, experts)]
    assert tall[0] / tall[1] == pytest.approx((1 + len(SLOTS)) / (1 + 4), rel=0.15)
