"""Laws of the semantic experts: what the router reads and is not shown, what heads are told, what a report passes."""

import pytest
import torch

from backbones import Text
from physexperts import masked_mean
from prophy.refine import RefinementExpertBlock
from prophy.routers import RefinementReport, SemanticReport
from prophy.semantic import FLOOR, SemanticExpertBlock, Standard
from prophy.train import fresh, standardise, train
from trainers import InMemory


def block(**more):
    torch.manual_seed(0)
    return SemanticExpertBlock(text_dim=6, experts=3, channels=2, grid=(1, 2, 2), labels=4, **more)


def text(rows=5, length=4):
    torch.manual_seed(1)
    mask = torch.arange(length)[None] < torch.tensor([1, 2, 3, 4, 4])[:rows, None]
    return Text(torch.randn(rows, length, 6), mask)


def test_the_router_reads_the_standardised_mean_of_the_valid_tokens():
    seb, said = block().eval(), text()
    pooled = masked_mean(said.features, said.mask)
    assert torch.equal(seb(said).routing.weights, seb.router(pooled).weights)
    seb.standard.measure(pooled)
    standard = (pooled - pooled.mean(0)) / pooled.std(0, correction=0)
    torch.testing.assert_close(seb(said).routing.weights, seb.router(standard).weights)


def test_a_channel_that_hardly_moves_is_not_blown_up():
    rows = torch.tensor([[0.0, 1.0, 5.0], [10.0, 1.001, 5.0]])
    standard = Standard(3)
    standard.measure(rows)
    floor = FLOOR * float(rows.std(0, correction=0).mean())
    torch.testing.assert_close(standard.spread, torch.tensor([5.0, floor, floor]))
    standard.measure(torch.ones(4, 3))
    assert torch.equal(standard(torch.ones(1, 3)), torch.zeros(1, 3))
    assert torch.equal(standard.spread, torch.ones(3))


def test_training_measures_the_sentences_of_the_first_stage_and_the_bundle_keeps_that(
    backbone, make_recipe, batch_of, tmp_path
):
    recipe = make_recipe("store=float32", "steps=1", "semantic.first_steps=1")
    data = InMemory(batch_of(recipe, backbone))
    said = InMemory({k: v.flip(0) * 2 if k == "text" else v for k, v in data.columns.items()})
    untouched, measured = fresh(recipe, backbone), fresh(recipe, backbone)
    standardise(measured, said)
    adapter, _ = train(recipe, backbone, data, said=said, out=tmp_path, quiet=True)
    assert torch.equal(adapter.semantic.standard.mean, measured.semantic.standard.mean)
    assert not torch.equal(adapter.semantic.standard.mean, untouched.semantic.standard.mean)
    from prophy.generate import load_adapter

    again = load_adapter(tmp_path / "bundle", backbone)
    assert torch.equal(again.semantic.standard.spread, adapter.semantic.standard.spread)


def test_the_decay_of_the_first_stage_is_its_own_and_leaves_the_basis_maps(backbone, make_recipe, batch_of, tmp_path):
    found = []
    for decay in (0, 50):
        recipe = make_recipe("semantic.first_steps=3", f"semantic.first_weight_decay={decay}")
        data = InMemory(batch_of(recipe, backbone))
        adapter, _ = train(recipe, backbone, data, out=tmp_path / str(decay), only="semantic", quiet=True)
        found.append(adapter.semantic.state_dict())
        fresh_maps = {k: v for k, v in fresh(recipe, backbone).semantic.state_dict().items() if k.startswith("maps.")}
        assert fresh_maps
        assert all(torch.equal(found[-1][name], value) for name, value in fresh_maps.items())
    assert found[1]["router.inner.weight"].norm() < found[0]["router.inner.weight"].norm()


def test_tokens_are_left_out_while_training_alone_and_never_all_of_a_text():
    seb, said = block(token_dropout=0.999), text()
    shown = []
    seb.router.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    seb.train()(said)
    torch.testing.assert_close(shown[0], masked_mean(said.features, said.mask))  # all would go: all stay
    seb.token_dropout = 0.5
    for _ in range(20):
        seb(said)
    assert len({tuple(rows[3].tolist()) for rows in shown}) > 3
    assert all(bool(rows.any(1).all()) for rows in shown)
    seb.eval()(said)
    torch.testing.assert_close(shown[-1], masked_mean(said.features, said.mask))


def test_the_share_of_tokens_left_out_is_the_recipe_s():
    seb = block(token_dropout=0.2)
    one = Text(torch.eye(6)[None].expand(400, -1, -1), torch.ones(400, 6, dtype=torch.bool))
    shown = []
    seb.router.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    seb.train()(one)
    assert float((shown[0] > 0).float().mean()) == pytest.approx(0.8, abs=0.04)


def test_heads_read_the_weights_of_all_experts():
    seb, said = block().eval(), text()
    semantics = seb(said)
    torch.testing.assert_close(semantics.output, seb.head(semantics.routing.weights))
    reb = RefinementExpertBlock(dim=6, experts=4, k=2, labels=3, hidden=5)
    _, refinement = reb(torch.randn(2, 8, 6), (2, 2, 2))
    torch.testing.assert_close(refinement.maps, reb.head(refinement.routing.probs))
    assert torch.equal(refinement.on_grid[1, 2, 1, 0, 1], refinement.maps[1, 5, 2])


def test_the_token_router_does_not_see_how_large_a_hidden_state_is():
    torch.manual_seed(0)
    reb, x = RefinementExpertBlock(dim=6, experts=4, k=2, labels=3, hidden=5), torch.randn(1, 8, 6)
    small, large = (reb(x * size, (2, 2, 2))[1].routing.probs for size in (1.0, 100.0))
    torch.testing.assert_close(small, large, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("accuracy", "initial", "control", "passes"),
    [(0.95, 0.5, 0.6, True), (0.89, 0.1, 0.1, False), (0.95, 0.8, 0.1, False), (0.95, 0.1, 0.8, False)],
)
def test_semantic_routing_passes_only_above_its_bar_and_above_both_controls(accuracy, initial, control, passes):
    report = SemanticReport(accuracy, initial, control, {}, 1.0, [], 0.5, [])
    assert report.passes == passes


@pytest.mark.parametrize(("score", "random", "passes"), [(0.5, 0.2, True), (0.5, 0.6, False), (0.29, 0.1, False)])
def test_localisation_passes_only_above_its_bar_and_above_random_routers(score, random, passes):
    report = RefinementReport(
        score=score,
        random_quantile=random,
        attention=0.9,
        by_mechanism={},
        attention_by_mechanism={},
        prevalence={},
        pointing={},
        load=[],
        entropy=1.0,
        dead=[],
    )
    assert report.passes == passes
