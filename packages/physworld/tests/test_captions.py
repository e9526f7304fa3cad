"""Captions can be read back, in whole and nothing but."""

import numpy as np
import pytest

from physworld import MECHANISMS, SPLITS, captions
from physworld.mechanism import module


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_caption_is_read_back_as_its_mechanism_and_scenario(mechanism: str) -> None:
    world = module(mechanism)
    for split in SPLITS:
        for k in range(60):
            params = world.sample(np.random.default_rng(k), split)
            text = world.caption(params)
            found = captions.parse(text.capitalize() + ".")
            assert found is not None, text
            assert (found.mechanism, found.scenario) == (mechanism, params["scenario"]), text


def test_the_vocabulary_is_what_captions_say_and_no_more() -> None:
    said: set[str] = set()
    for mechanism in MECHANISMS:
        for split in SPLITS:
            for k in range(150):
                params = module(mechanism).sample(np.random.default_rng(k), split)
                said |= set(captions.words(module(mechanism).caption(params)))
    assert said == set(captions.VOCABULARY)
    assert list(captions.VOCABULARY) == sorted(set(captions.VOCABULARY))


def test_a_caption_fixes_the_law() -> None:
    found = captions.parse("a large blue ball is thrown to the left")
    assert found is not None
    assert found.mechanism == "rigid_body"
    assert found.parameters == {"scenario": "thrown", "colour": "blue", "direction": "left", "size": "large"}
    strong = captions.parse("a small red ball is thrown to the right under strong gravity")
    assert strong is not None
    assert strong.parameters["g"] == (0.13, 0.18)


@pytest.mark.parametrize("text", ["", "a dog is thrown to the left", "a red ball", "the the the"])
def test_a_sentence_of_another_world_is_refused(text: str) -> None:
    assert captions.parse(text) is None
