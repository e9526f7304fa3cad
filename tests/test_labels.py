"""The vocabulary of labels has one owner, physexperts; what others repeat is the same."""

import physexperts
import physworld


def test_the_world_has_the_eight_mechanisms_of_the_vocabulary_in_its_order():
    assert physworld.MECHANISMS == physexperts.MECHANISMS
