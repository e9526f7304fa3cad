"""Laws of what is measured: the paraphrases, the bootstrap, and the shipped bundle's routers where one is shipped."""

import json
from importlib.resources import files

import numpy as np
import pytest
import torch

import physworld
from physworld.captions import VOCABULARY, words
from prophy.evaluate import bootstrap
from prophy.routers import paraphrases, refinement_report


def test_paraphrases_are_two_hundred_in_the_world_s_words_without_the_templates_words():
    found = paraphrases()
    left_out = json.loads(files("prophy").joinpath("data/paraphrases.json").read_text())["left_out"]
    avoided = {word for each in left_out.values() for word in each}
    assert len({prompt for prompt, _ in found}) == 200
    assert {m: sum(n == m for _, n in found) for m in physworld.MECHANISMS} == dict.fromkeys(physworld.MECHANISMS, 25)
    for prompt, _ in found:
        assert set(words(prompt)) <= set(VOCABULARY) - avoided, prompt
    made = {c.caption for m in physworld.MECHANISMS for c in physworld.simulate_many(m, range(3))}
    assert not made & {prompt for prompt, _ in found}


def test_the_bootstrap_covers_clips_and_seeds():
    rng = np.random.default_rng(0)
    same = rng.normal(0, 1, (1, 64))
    assert bootstrap(same + 0.1, same).low == pytest.approx(0.1)  # paired: a shift of every clip has no spread
    seeds = same + np.array([[-0.5], [0.0], [0.5]])
    wide, narrow = bootstrap(seeds, same), bootstrap(same, same)
    assert wide.high - wide.low > 0.3
    assert narrow.high - narrow.low == pytest.approx(0)
    assert bootstrap(same, same, interval=False).low is None


def test_the_shipped_refinement_router_finds_the_phenomena():
    import backbones
    from prophy.generate import load_adapter

    torch.manual_seed(0)
    backbone = backbones.load("world")
    report = refinement_report(load_adapter(None, backbone), backbone, clips=3)
    assert report.passes
    assert report.score > 2 * report.random_quantile
