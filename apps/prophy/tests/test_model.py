"""Laws of the model: identity at the start, who gets gradients, the chain, the experts, inversion."""

from dataclasses import replace

import pytest
import torch

from backbones import attach, blocks_of, sample
from prophy.adapter import ProphyAdapter, count
from prophy.physical import embedded, places
from prophy.train import Trainer, fresh

FAMILIES = ("wan-ti2v", "wan21_t2v", "cogvideox_2b", "cogvideox_5b")
KINDS = {
    "prophy": (),
    "plain": ("adapter=plain",),
    "lora": ("branch.kind=lora",),
    "wisa": ("adapter=wisa",),
}


def film(backbone, recipe, prompts=("a red ball",), steps=2):
    d = recipe.data
    size = {"frames": d.frames, "height": d.height, "width": d.width}
    return sample(backbone, list(prompts), seed=3, steps=steps, guidance=2.0, **size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_adapter_equals_the_base_bit_for_bit_in_the_stock_pipeline(family, kind, families, make_recipe):
    backbone, sets = families[family]
    recipe = make_recipe(*KINDS[kind], *sets)
    base = film(backbone, recipe, ("a red ball", "the small ball"))
    with attach(backbone, fresh(recipe, backbone)):
        assert torch.equal(film(backbone, recipe, ("a red ball", "the small ball")), base)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["wan-ti2v", "cogvideox_5b"])
def test_a_trained_adapter_changes_the_video_and_detaching_restores_it(family, kind, families, make_recipe, move):
    backbone, sets = families[family]
    recipe = make_recipe(*KINDS[kind], *sets)
    base, digest = film(backbone, recipe), backbone.digest
    with attach(backbone, move(fresh(recipe, backbone))):
        assert not torch.equal(film(backbone, recipe), base)
    assert torch.equal(film(backbone, recipe), base)
    assert backbone.digest == digest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_part_of_the_adapter_and_nothing_else(
    family, kind, families, make_recipe, move, batch_of, progress
):
    backbone, sets = families[family]
    recipe = make_recipe(*KINDS[kind], *sets)
    adapter = move(fresh(recipe, backbone))
    with backbone.frozen(), attach(backbone, adapter, in_predict=True):
        adapter.train()
        terms = Trainer(recipe, adapter, backbone).loss(batch_of(recipe, backbone), progress())
        sum(t for name, t in terms.items() if not name.startswith("log/")).backward()
        modules = [m for m in backbone.pipe.components.values() if isinstance(m, torch.nn.Module)]
        assert all(p.grad is None for m in modules for p in m.parameters())
    for name, group in adapter.groups().items():
        assert any(p.grad is not None and bool(p.grad.any()) for p in group.parameters()), name
    owned = {p for group in adapter.groups().values() for p in group.parameters()}
    assert {p for p in adapter.parameters() if p.requires_grad} <= owned


def test_the_groups_are_all_of_the_adapter_and_do_not_overlap(backbone, make_recipe):
    for sets in KINDS.values():
        adapter = fresh(make_recipe(*sets), backbone)
        parts = [p for group in adapter.groups().values() for p in group.parameters()]
        assert len(parts) == len(set(parts)) == len(list(adapter.parameters()))


def test_physical_blocks_are_spread_from_the_first_block_to_the_last():
    assert places(30, 10) == (0, 3, 6, 10, 13, 16, 19, 23, 26, 29)
    assert places(42, 8) == (0, 6, 12, 18, 23, 29, 35, 41)
    with pytest.raises(ValueError, match=r"1\.\.3"):
        places(3, 4)


def test_the_plain_control_has_as_many_parameters_within_two_per_cent(backbone, make_recipe):
    whole, plain = (count(fresh(make_recipe(*KINDS[kind]), backbone)) for kind in ("prophy", "plain"))
    assert abs(plain - whole) < 0.02 * whole


def test_physical_blocks_start_as_copies_and_move_without_the_backbone(backbone, make_recipe):
    adapter = fresh(make_recipe(), backbone)
    block, copy = backbone.transformer.blocks[0], adapter.physical.copies[0]
    state = dict(block.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in copy.state_dict().items())
    with torch.no_grad():
        copy.ffn.net[2].weight.add_(1.0)
    assert not torch.equal(copy.ffn.net[2].weight, block.ffn.net[2].weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shifted_latent_enters_as_the_patch_embedding_of_the_sum(family, families, make_recipe):
    backbone, sets = families[family]
    recipe = make_recipe(*sets)
    d = recipe.data
    stack = blocks_of(backbone.transformer)
    calls = []
    hook = backbone.transformer.register_forward_pre_hook(lambda m, a, k: calls.append(k), with_kwargs=True)
    film(backbone, recipe, steps=1)
    hook.remove()
    call = calls[0]
    delta = torch.randn(len(call["hidden_states"]), *backbone.spec.latent.shape(d.frames, d.height, d.width))
    native = delta if stack.spec.latent_layout == "bcthw" else delta.transpose(1, 2)
    with torch.no_grad():
        before = stack.begin(**call).h
        after = stack.begin(**(call | {"hidden_states": call["hidden_states"] + native})).h
        torch.testing.assert_close(after, before + embedded(stack, delta), atol=1e-5, rtol=1e-4)


def test_physics_accumulates_along_the_chain(backbone, make_recipe, move, batch_of, progress):
    """The last physical block reads what the first one made: changing the first changes the last one's input."""
    recipe = make_recipe("refine.on=false")
    adapter, seen = move(fresh(recipe, backbone)), []
    adapter.physical.copies[-1].register_forward_pre_hook(lambda m, given: seen.append(given[0].clone()))
    trainer = Trainer(recipe, adapter, backbone)
    with torch.no_grad(), attach(backbone, adapter, in_predict=True):
        for _ in range(2):
            trainer.loss(batch_of(recipe, backbone), progress())
            adapter.physical.copies[0].ffn.net[2].weight.add_(0.5)
    assert not torch.allclose(seen[0], seen[1])


def test_all_semantic_experts_answer_and_two_refinement_experts_a_token(
    backbone, make_recipe, batch_of, progress, move
):
    recipe = make_recipe()
    adapter = move(fresh(recipe, backbone))
    with torch.no_grad(), attach(backbone, adapter, in_predict=True):
        Trainer(recipe, adapter, backbone).loss(batch_of(recipe, backbone), progress())
    rho, token = adapter.seen.semantics.routing, adapter.seen.refinement.routing
    assert bool((rho.weights > 0).all())
    torch.testing.assert_close(rho.weights.sum(-1), torch.ones(recipe.batch))
    assert bool((token.selected.sum(-1) == 2).all())
    torch.testing.assert_close(token.dense()[token.selected], token.probs[token.selected])  # raw, not renormalised


def test_refinement_acts_on_the_tokens_between_text_and_feed_forward_of_the_last_physical_block(
    backbone, make_recipe, batch_of, progress
):
    recipe = make_recipe()
    adapter, order = fresh(recipe, backbone), []
    last = adapter.physical.copies[-1]
    last.attn2.register_forward_hook(lambda *_: order.append("text"))
    adapter.refine.register_forward_hook(lambda *_: order.append("refine"))
    last.ffn.register_forward_hook(lambda *_: order.append("feed-forward"))
    with torch.no_grad(), attach(backbone, adapter, in_predict=True):
        Trainer(recipe, adapter, backbone).loss(batch_of(recipe, backbone), progress())
    assert order == ["text", "refine", "feed-forward"]


def test_expert_inversion_turns_the_semantic_router_around(backbone, make_recipe, move):
    adapter = move(fresh(make_recipe(), backbone)).eval()
    text = backbone.embed(["two disks", "ice melts"])
    with torch.no_grad():
        straight, turned = adapter.semantic(text), adapter.semantic(text, inverted=True)
    torch.testing.assert_close(turned.routing.weights, (-straight.routing.logits).softmax(-1))
    with attach(backbone, adapter):
        video = film(backbone, adapter.recipe)
        adapter.inverted = True
        assert not torch.equal(film(backbone, adapter.recipe), video)


def test_a_lora_shadow_shares_the_frozen_weights(backbone, make_recipe):
    adapter = fresh(make_recipe("branch.kind=lora"), backbone)
    own = backbone.transformer.blocks[1].attn1.to_q.weight
    assert adapter.lora.shadows[1].attn1.to_q.base_layer.weight.data_ptr() == own.data_ptr()
    assert not any("base_layer" in name for name, _ in adapter.named_parameters())
    with pytest.raises(ValueError, match="lora_targets"):
        ProphyAdapter(backbone, make_recipe("branch.kind=lora", "branch.lora_targets=[to_nowhere]"))


def test_padding_does_not_reach_the_semantic_router(families, make_recipe):
    """CogVideoX pads with rows that are not zero: the mask keeps them out."""
    backbone, sets = families["cogvideox_5b"]
    adapter = fresh(make_recipe(*sets), backbone).eval()
    text = backbone.embed(["a red ball"])
    noisy = type(text)(torch.where(text.mask[..., None], text.features, 9.0), text.mask)
    with torch.no_grad():
        assert torch.equal(adapter.semantic(text).routing.weights, adapter.semantic(noisy).routing.weights)


def test_semantic_experts_want_a_patch_embedding_that_they_know(backbone):
    stack = blocks_of(backbone.transformer)
    stack.spec = replace(stack.spec, latent_layout="bnc")  # as a family of another package may have
    with pytest.raises(ValueError, match="expected a Wan or a CogVideoX for semantic experts"):
        embedded(stack, torch.zeros(1, backbone.spec.latent.channels, 5, 8, 8))
