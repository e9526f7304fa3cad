"""Laws of what is measured: the paraphrases, the bootstrap, and the shipped bundle's routers where one is shipped."""

import json
import re
from importlib.resources import files

import pytest
import torch

import backbones
import physworld
from backbones import Text
from physworld.captions import VOCABULARY, words
from prophy.generate import load_adapter
from prophy.places import look
from prophy.rewordings import reworded, sentences
from prophy.routers import paraphrases, refinement_report, semantic_report


@pytest.fixture(scope="module")
def captions():
    """The captions of the tiny recipe's clips, each once, with their mechanisms."""
    return {clip.caption: clip.labels[0] for clip in physworld.spread(800)}


@pytest.mark.parametrize("which", ["dev", "test"])
def test_paraphrases_are_two_hundred_in_the_world_s_words_without_the_templates_words(which, captions):
    found = paraphrases(which)
    left_out = json.loads(files("prophy").joinpath(f"data/paraphrases-{which}.json").read_text())["left_out"]
    avoided = {word for each in left_out.values() for word in each}
    assert len({prompt for prompt, _ in found}) == 200
    assert {m: sum(n == m for _, n in found) for m in physworld.MECHANISMS} == dict.fromkeys(physworld.MECHANISMS, 25)
    for prompt, _ in found:
        assert set(words(prompt)) <= set(VOCABULARY) - avoided, prompt
    assert not captions.keys() & {prompt for prompt, _ in found}


def test_nothing_was_tuned_on_the_paraphrases_of_the_test(captions):
    asked = [prompt for prompt, _ in paraphrases("test")]
    assert not {prompt for prompt, _ in paraphrases("dev")} & set(asked)
    read = {sentence for caption in captions for sentence in (caption, *reworded(caption))}
    assert not {tuple(sorted(words(s))) for s in read} & {tuple(sorted(words(s))) for s in asked}

    def held(sentences):  # which of the vocabulary's words
        return torch.tensor(
            [[word in said for word in VOCABULARY] for said in {frozenset(words(s)) for s in sentences}]
        )

    one, other = held(asked).double(), held(read).double()
    both = one @ other.T
    largest = float((both / (one.sum(1)[:, None] + other.sum(1) - both)).max())
    assert largest < 0.9  # of the distinct words of both: "very", or a word more


def test_every_rewording_is_in_the_world_s_words_and_in_use(captions):
    tree = json.loads(files("prophy").joinpath("data/rewordings.json").read_text())
    for mechanism, by_word in tree["patterns"].items():
        mine = [caption for caption, kind in captions.items() if kind == mechanism]
        said = {sentence for caption in mine for sentence in reworded(caption)}
        assert all(set(words(sentence)) <= set(VOCABULARY) for sentence in said)
        patterns = [pattern for those in by_word.values() for pattern in those]
        assert len(set(patterns)) >= 12
        for pattern in patterns:
            as_said = re.compile(re.sub(r"\\{\w+\\}", r"\\w+", re.escape(pattern)))
            assert any(as_said.fullmatch(sentence) for sentence in said), pattern


def test_a_rewording_keeps_the_words_of_its_caption():
    said = reworded("a large green ball going left hits a small blue ball and bounces")
    assert "a green ball going left bounces on a blue ball" in said
    assert "the green ball moves on to the small blue ball" in said
    assert not any("sticks" in sentence or "right" in sentence for sentence in said)
    assert not any("under" in s for s in reworded("a large blue ball is thrown to the left"))
    assert reworded("a large blue cat is thrown to the left") == ()


def test_sentences_carry_the_labels_of_their_caption_and_are_embedded_once():
    asked = []

    def embed(those):
        asked.extend(those)
        features = torch.arange(len(those), dtype=torch.float32)[:, None, None].expand(-1, 2, 3)
        return Text(features, torch.ones(len(those), 2, dtype=torch.bool))

    captions = ["one slow ripple spreads on a pond", "a cat", "one slow ripple spreads on a pond"]
    data = sentences(captions, torch.eye(3), embed)
    assert len(asked) == len(set(asked))
    of_each = [1 + len(reworded(caption)) for caption in captions]
    assert data.labels.sum(0).tolist() == of_each
    batch = data.get_batch(torch.arange(len(data)))
    assert [asked[int(row[0, 0])] for row in batch["text"]] == [s for c in captions for s in (c, *reworded(c))]
    assert len(sentences(captions, torch.eye(3), embed, other_words=False)) == 3


@pytest.fixture(scope="module")
def shipped():
    """The backbone and the bundle that ships."""
    torch.manual_seed(0)
    backbone = backbones.load("world")
    return backbone, load_adapter(None, backbone)


def test_the_shipped_semantic_router_names_what_free_sentences_are_about(shipped):
    backbone, adapter = shipped
    report = semantic_report(adapter, backbone)
    assert report.passes
    assert report.accuracy > 0.9
    assert min(report.by_mechanism.values()) > 0.7


def test_the_shipped_refinement_router_finds_the_phenomena(shipped):
    backbone, adapter = shipped
    report = refinement_report(adapter, look(adapter, backbone, clips=3))
    assert report.passes
    assert report.score > 2 * report.random_quantile
