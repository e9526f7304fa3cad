"""What is kept back from training is a matter of the film alone, and a clip meets the same noise whatever is asked."""

import json

import pytest
import torch

from trainers import InMemory
from trainers.heldout import compare, each_clip, kept_back

FILMS = [f"film {number}.mp4" for number in range(200)]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_about_the_share_of_many_films_is_kept_back(share):
    assert sum(kept_back(FILMS, share)) / 200 == pytest.approx(share, abs=0.06)


def test_all_clips_of_a_film_go_the_same_way_in_whatever_order_they_come():
    once = dict(zip(FILMS, kept_back(FILMS, 0.2), strict=True))
    again = [*reversed(FILMS), *FILMS]
    assert kept_back(again, 0.2) == [once[film] for film in again]


@pytest.mark.parametrize("count", range(2, 12))
def test_of_few_films_one_is_kept_back_and_one_is_left(count):
    for start in range(0, 180, count):
        for share in (0.01, 0.99):
            held = kept_back(FILMS[start : start + count], share)
            assert 0 < sum(held) < count


def test_a_film_that_is_added_makes_no_trained_film_a_held_out_one():
    for count in range(2, 40):
        before, after = (kept_back(FILMS[:n], 0.1) for n in (count, count + 1))
        assert not any(new and not old for old, new in zip(before, after, strict=False))


def test_nothing_is_kept_back_where_nothing_shall_be_or_there_is_one_film():
    assert kept_back(FILMS, 0.0) == [False] * 200
    assert kept_back(["a", "a"], 0.5) == [False, False]
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        kept_back(FILMS, 1.0)


def test_each_clip_has_its_own_mean_and_the_same_noise_for_every_loss():
    data = InMemory({"x": torch.tensor([[1.0], [2.0], [3.0]])})

    def noisy(factor):
        def loss(batch, level, generator):
            return {"flow": factor * batch["x"].mean() + level * torch.randn(1, generator=generator)[0]}

        return loss

    one, other = (each_clip(noisy(factor), data, quiet=True)["flow"] for factor in (1.0, 2.0))
    assert one.shape == (3,)
    assert torch.allclose(other - one, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), atol=1e-6)


def test_a_look_at_held_out_clips_changes_no_random_number():
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    each_clip(lambda batch, level, generator: {"x": torch.rand(1)[0]}, InMemory({"x": torch.zeros(2, 1)}), quiet=True)
    assert torch.equal(torch.rand(1), wanted)


class Difference:
    """Stands for `physworld.paired.Difference`."""

    def __init__(self, mean):
        self.mean = mean

    def __str__(self):
        return f"{self.mean:+.1f}"


def paired(a, b, one, other):
    return Difference(torch.tensor(one).mean().item() - torch.tensor(other).mean().item())


def test_methods_stand_beside_the_base_in_percent_of_its_loss_and_are_written_clip_by_clip(tmp_path):
    data = InMemory({"x": torch.tensor([[1.0], [3.0]])})

    def run(factor):
        return lambda batch, level, generator: {"base": batch["x"].mean(), "trained": factor * batch["x"].mean()}

    found = compare({"mine": [run(0.5), run(0.7)], "control": [run(1.0)]}, data, ("a", "b"), quiet=True)
    assert found.rows(paired) == [
        ("model", "held-out loss", "- base, % of its loss [95 %]", "clips"),
        ("base", "2.0000", "", "2"),
        ("mine", "1.2000", "-40.0", "2"),
        ("control", "2.0000", "+0.0", "2"),
    ]
    tree = json.loads(found.save(tmp_path / "own.json", paired, {"split": "own"}).read_text())
    assert tree["losses"]["mine"][0] == pytest.approx([0.5, 1.5])
    assert tree["clips"] == ["a", "b"]
    assert tree["difference_percent"]["mine"]["mean"] == pytest.approx(-40)
