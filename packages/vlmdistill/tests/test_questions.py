import pytest

from vlmdistill import NEUTRAL, PLACELESS, VOCABULARIES, question


def test_the_vocabularies_are_seventeen_laws_twenty_nine_classes_and_eight_mechanisms():
    assert {name: len(set(entries)) for name, entries in VOCABULARIES.items()} == {
        "laws": 17,
        "wisa": 29,
        "mechanisms": 8,
    }
    assert set(VOCABULARIES["laws"]) < set(VOCABULARIES["wisa"])


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_every_category_has_a_question_of_its_own_or_names_an_absence(vocabulary):
    asked = [question(name) for name in VOCABULARIES[vocabulary] if name not in PLACELESS]
    assert len(set(asked)) == len(asked)
    assert all(words.startswith("Describe ") and words.endswith(" in the video.") for words in asked)
    assert NEUTRAL not in asked


def test_a_law_is_put_into_the_paper_s_sentence():
    assert question("combustion") == "Describe the combustion phenomenon in the video."
    assert PLACELESS.isdisjoint(VOCABULARIES["laws"])


def test_a_stranger_is_answered_with_what_was_meant():
    with pytest.raises(ValueError, match="unknown category 'colision'; did you mean 'collision'"):
        question("colision")
    with pytest.raises(ValueError, match="expected one of collision"):
        question("xyzzy")


def test_an_absence_has_no_question():
    with pytest.raises(ValueError, match="'no change' names an absence"):
        question("no change")
