"""The vocabulary of labels has one owner, physexperts; what others repeat is the same, and all understand it."""

import pytest

import physworld
import vlmdistill
from physexperts import CATEGORIES, LAWS, MECHANISMS, from_text, from_wisa


def test_questions_are_asked_for_the_categories_of_the_vocabulary_in_its_order():
    names = tuple(name for _, name in CATEGORIES)
    assert {"laws": LAWS, "wisa": names, "mechanisms": MECHANISMS} == vlmdistill.VOCABULARIES


def test_the_world_has_the_eight_mechanisms_of_the_vocabulary_in_its_order():
    assert physworld.MECHANISMS == MECHANISMS


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_labels_of_the_world_are_read_from_its_records_and_from_its_captions(mechanism):
    for clip in physworld.simulate_many(mechanism, list(range(6))):
        record = clip.record()
        labels = from_wisa(record)
        assert set(labels.mechanisms) == set(clip.labels)
        assert labels.dominant == mechanism
        answers = from_wisa({key: value for key, value in record.items() if key != "labels"})
        assert answers.dominant in {mechanism, None}  # WISA has no question about warming alone
        assert not answers.unknown
        assert set(from_text(clip.caption).mechanisms) == set(clip.labels), clip.caption
