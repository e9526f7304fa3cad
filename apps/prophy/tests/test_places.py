"""Laws of where a phenomenon is said to be: words are found by their tokens, all three speak of the same cells."""

import json
from importlib.resources import files

import pytest
import torch

import backbones
from physexperts import MECHANISMS
from physworld import simulate
from physworld.captions import VOCABULARY, words
from prophy import pictures
from prophy.labels import said_in
from prophy.places import NAMING, look, naming, text_attention
from prophy.train import fresh


@pytest.fixture(scope="module")
def world():
    return backbones.load("world")


@pytest.fixture(scope="module")
def places(world, make_recipe):
    adapter = fresh(make_recipe(), world).eval()
    return adapter, look(adapter, world, clips=1)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_phenomenon_is_named_by_words_of_the_world_and_found_at_their_tokens(world, mechanism):
    caption = simulate(mechanism, 0).caption
    at = naming(world, caption, mechanism)
    assert [words(caption)[i] for i in at] == [w for w in words(caption) if w in NAMING[mechanism].split()]
    assert at
    assert set(NAMING[mechanism].split()) <= set(VOCABULARY)
    said = json.loads(files("prophy").joinpath("data/paraphrases-test.json").read_text())["left_out"]
    assert set(said[mechanism]) <= set(NAMING[mechanism].split())


def test_the_attention_of_a_wan_is_crossed_and_that_of_a_cogvideox_joint(families):
    for name, (backbone, _) in families.items():
        modules, first = text_attention(backbone)
        assert len(modules) == 3, name
        assert first == (backbone.spec.text_length if name.startswith("cog") else 0), name


def test_the_frozen_generator_s_attention_finds_the_phenomena(places):
    _, seen = places
    scores = [one.above_chance for each in seen.scored(seen.attention).values() for one in each]
    assert len(scores) >= 8
    assert sum(scores) / len(scores) > 0.4
    assert all(maps.keys() == true.keys() for maps, true in zip(seen.attention, seen.truth, strict=True))


def test_a_map_of_the_truth_scores_one_and_a_constant_one_nothing(places):
    _, seen = places
    exact = seen.scored([{n: c.float() for n, c in true.items()} for true in seen.truth])
    flat = seen.scored([{n: torch.ones(c.shape) for n, c in true.items()} for true in seen.truth])
    assert {round(one.above_chance, 6) for each in exact.values() for one in each} == {1.0}
    assert {round(one.above_chance, 6) for each in flat.values() for one in each} == {0.0}


def test_reb_is_read_at_the_category_of_its_mechanism(places):
    _, seen = places
    read = seen.read()
    for row, maps in enumerate(read):
        for name, values in maps.items():
            assert torch.equal(values, seen.refinement.on_grid[row, MECHANISMS.index(name)].float())


def test_looking_leaves_the_adapter_and_the_backbone_as_they_were(places, world):
    adapter, _ = places
    assert not adapter.refine.router._forward_pre_hooks
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in text_attention(world)[0])


def test_the_comparison_and_a_prompt_s_maps_are_drawn(places, tmp_path, make_recipe):
    adapter, seen = places
    assert pictures.compared(seen, tmp_path / "c.png").stat().st_size > 1000
    film = seen.clips[0].video
    for prompt in ("a small red ball is thrown", "a cat"):
        path = pictures.found(adapter.seen, film, tmp_path / "f.png", adapter.recipe, prompt=prompt, about="x")
        assert path.stat().st_size > 1000


def test_a_prompt_speaks_of_mechanisms_by_keywords_and_of_laws_by_their_names():
    spoken = said_in("one disk of ice melts slowly in warm water", "mechanisms")
    assert [m for m, there in zip(MECHANISMS, spoken, strict=True) if there] == ["phase_change", "thermal"]
    assert said_in("Melting and Collision", "laws").sum() == 2
    assert said_in("a cat", "wisa").sum() == 0
