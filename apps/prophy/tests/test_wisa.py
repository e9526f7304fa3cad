"""Laws of the baseline: gates, guidance in three parts, what the classifier weighs."""

import pytest
import torch

from backbones import attach, sample
from prophy.train import fresh
from prophy.wisa import PhysicalAttention, classifier_weight


@pytest.fixture
def adapter(backbone, make_recipe, move):
    return move(fresh(make_recipe("adapter=wisa", "wisa.flip=0", "sampling.guidance=2"), backbone))


def film(backbone, prompt="a red ball is thrown to the left"):
    return sample(backbone, [prompt], seed=1, steps=2, guidance=2.0)


def test_without_guidance_of_the_physics_its_category_is_not_heard(backbone, make_recipe, adapter):
    recipe = adapter.recipe
    with attach(backbone, adapter):
        with_physics = film(backbone)
        adapter.recipe = recipe.model_copy(update={"wisa": recipe.wisa.model_copy(update={"guidance": 0.0})})
        text_alone = film(backbone)
        adapter.annotate(torch.zeros(1, 8))
        unlabelled = film(backbone)
    assert not torch.equal(with_physics, text_alone)
    torch.testing.assert_close(text_alone, unlabelled)


def test_given_annotations_win_over_the_words_until_they_are_taken_back(backbone, adapter):
    with attach(backbone, adapter):
        read = film(backbone)
        adapter.annotate(torch.eye(8)[5:6], torch.ones(1, 18))
        given = film(backbone)
        adapter.annotate(None)
        again = film(backbone)
    assert torch.equal(read, again)
    assert not torch.equal(read, given)


def test_another_prompt_is_another_category(backbone, adapter):
    with attach(backbone, adapter):
        film(backbone)
        first = adapter.labels.clone()
        film(backbone, "one disk of ice melts slowly in warm water")
    assert not torch.equal(adapter.labels, first)


def test_an_absent_category_speaks_at_its_floor(make_recipe):
    torch.manual_seed(0)
    wisa = make_recipe("wisa.floor=0.0", "wisa.flip=0").wisa
    block = PhysicalAttention(dim=8, time=4, labels=3, wisa=wisa).eval()
    torch.nn.init.normal_(block.attention.out.weight)
    h, time, q = torch.randn(1, 5, 8), torch.randn(1, 4), torch.zeros(1, 18)
    silent, _ = block(h, time, torch.zeros(1, 3), q)
    assert torch.equal(silent, h)
    loud, _ = block(h, time, torch.ones(1, 3), q)
    parts = sum(block(h, time, one[None], q)[0] - h for one in torch.eye(3))
    torch.testing.assert_close(loud - h, parts, atol=1e-5, rtol=1e-4)


def test_the_classifier_s_gradient_is_bounded():
    for size in (0.3, 2.0, 100.0):
        loss = torch.tensor(size, requires_grad=True)
        classifier_weight(loss).backward()
        assert float(loss.grad) == pytest.approx((0.1 if size > 1 else 0.05 * size) / (1 + size))
