import json
from pathlib import Path

import pytest
import torch

from physexperts import CATEGORIES, LAWS, MECHANISMS, QUESTIONS, Labels, from_text, from_wisa
from physexperts.keywords import _RULES
from physexperts.labels import _DATA

RECORDS = json.loads((Path(__file__).parent / "data" / "wisa_example.json").read_text(encoding="utf-8"))


def test_the_vocabulary_has_29_categories_17_laws_and_eight_mechanisms():
    assert len(CATEGORIES) == len(set(CATEGORIES)) == 29
    assert [len(names) for names in QUESTIONS.values()] == [7, 7, 6, 2, 7]
    assert len(LAWS) == 17
    assert list(LAWS) == [
        name for q in ("q0", "q1", "q2") for name in QUESTIONS[q] if not name.startswith("no obvious")
    ]
    assert len(MECHANISMS) == 8


def test_every_law_maps_to_mechanisms_and_every_mechanism_has_a_law_and_keywords():
    assert tuple(_DATA["law_to_mechanisms"]) == LAWS
    mapped = [m for names in _DATA["law_to_mechanisms"].values() for m in names]
    assert set(mapped) == set(MECHANISMS)
    assert set(_RULES["words"]) == {*MECHANISMS, "combustion"}


@pytest.mark.parametrize(
    ("record", "mechanisms", "dominant"),
    [
        (0, ("elastic", "collision", "optical"), "elastic"),
        (1, ("elastic", "fluid", "phase_change", "thermal", "optical"), "phase_change"),
        (2, ("elastic", "fluid"), "fluid"),
    ],
)
def test_the_published_records_get_their_labels(record, mechanisms, dominant):
    labels = from_wisa(RECORDS[record])
    assert labels.mechanisms == mechanisms
    assert labels.dominant == dominant
    assert not labels.unknown
    assert labels.multi_hot.tolist() == [float(m in mechanisms) for m in MECHANISMS]


def test_liquid_without_its_s_is_the_same_category():
    # The second record says "liquid objects appearance", the third "liquids objects appearance".
    assert ("q4", "liquids objects appearance") in from_wisa(RECORDS[1]).categories
    assert ("q4", "liquids objects appearance") in from_wisa(RECORDS[2]).categories


def test_the_training_record_nests_the_same_answers():
    nested = {"captions": "", "physical_annotation": RECORDS[1], "label": RECORDS[1]["label"]}
    assert from_wisa(nested) == from_wisa(RECORDS[1])


def test_laws_and_categories_become_vectors_in_the_order_of_the_vocabulary():
    labels = from_wisa({"q0": "Collision.", "q1": "no obvious thermodynamic phenomena.", "q3": "Yes, a flame."})
    assert labels.laws.tolist() == [1.0] + [0.0] * 16
    assert torch.nonzero(labels.wisa).flatten().tolist() == [0, 13, 20]


def test_spelling_case_lists_and_phrases_are_understood():
    assert from_wisa({"q1": ["Vaporisation", "evaporation"]}).categories == (("q1", "vaporization"),)
    assert from_wisa({"q0": "collision between two balls; rigid-body motion"}).mechanisms == ("rigid_body", "collision")
    assert from_wisa({"q0": None, "q1": "", "label": "Melting"}).mechanisms == ("phase_change", "thermal")


def test_an_unknown_category_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match=r"unknown category 'colission' in 'q0'; did you mean 'collision'\?"):
        from_wisa({"q0": "liquid motion, colission"})
    with pytest.raises(ValueError, match="unknown category 'telekinesis' in 'label'"):
        from_wisa({"q0": "liquid motion", "label": "telekinesis"})


def test_a_denial_is_not_a_category():
    with pytest.raises(ValueError, match="unknown category 'no obvious collision'"):
        from_wisa({"q0": "no obvious collision"})


def test_an_unknown_category_is_listed_when_asked():
    labels = from_wisa({"q0": "liquid motion, colission"}, unknown="list")
    assert labels.unknown == ("colission",)
    assert labels.mechanisms == ("fluid",)


def test_labels_written_by_name_win_over_the_answers():
    record = {"q0": "collision", "labels": ["collision", "rigid_body"], "category": "collision"}
    assert from_wisa(record).mechanisms == ("rigid_body", "collision")
    assert from_wisa(record).dominant == "collision"
    with pytest.raises(ValueError, match="did you mean 'rigid_body'"):
        from_wisa({"labels": ["rigid-body"]})


def test_the_dominant_mechanism_is_one_of_the_labels():
    with pytest.raises(ValueError, match="dominant mechanism among"):
        Labels.of(["fluid"], "optical")


@pytest.mark.parametrize(
    ("caption", "mechanisms", "dominant"),
    [
        ("a large blue ball is thrown to the left under weak gravity", ("rigid_body",), "rigid_body"),
        ("a small red ball going left hits a large blue ball and bounces", ("rigid_body", "collision"), "collision"),
        ("Honey is pouring slowly into warm milk.", ("fluid", "thermal"), "fluid"),
        ("An ice cube melts on a hot plate", ("phase_change", "thermal"), "phase_change"),
        ("Light refracts in a glass prism and the lens does not melt", ("optical",), "optical"),
        ("A balloon stretches without exploding", ("elastic",), "elastic"),
        ("Smoke rises after an explosion", ("compressible_flow", "thermal"), "compressible_flow"),
        ("two disks of ice melt slowly in warm water", ("phase_change", "thermal"), "phase_change"),
        ("Waves at the beach", ("fluid",), "fluid"),
        ("A cat sits on a sofa", (), None),
    ],
)
def test_keywords_label_a_plain_caption(caption, mechanisms, dominant):
    labels = from_text(caption)
    assert labels.mechanisms == mechanisms
    assert labels.dominant == dominant


@pytest.mark.parametrize("missing", [None, float("nan"), "", []])
def test_an_answer_that_is_missing_says_nothing(missing):
    whole = from_wisa({"q0": "rigid body motion, collision", "label": "collision"})
    assert (
        from_wisa({"q0": ["rigid body motion", missing or "", "collision"], "q1": missing, "label": "collision"})
        == whole
    )
    assert from_wisa({"q0": "rigid body motion", "label": missing}).mechanisms == ("rigid_body",)
    assert from_wisa({"q0": "liquid motion", "physical_annotation": missing}).dominant == "fluid"
    assert from_wisa({"q0": [missing or None], "label": "collision"}).dominant == "collision"
    empty = from_wisa(dict.fromkeys(["q0", "q1", "q2", "q3", "q4", "label"], missing))
    assert (empty.mechanisms, empty.dominant, empty.multi_hot.sum().item()) == ((), None, 0.0)


@pytest.mark.parametrize(
    "record",
    [{"q0": 3}, {"q0": {"a": 1}}, {"label": 3}, {"labels": [1]}, {"labels": 3}, {"physical_annotation": [1]}],
)
def test_an_answer_that_is_no_text_is_refused_by_its_key(record):
    with pytest.raises(ValueError, match=f"{next(iter(record))}.*text|physical_annotation"):
        from_wisa(record)


def test_one_label_may_stand_without_a_list():
    assert from_wisa({"labels": "fluid"}) == Labels.of(["fluid"])
