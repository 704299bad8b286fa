"""Both sets are asked the same queries, and the table says of each method what its answers say."""

import numpy as np
import pytest

from ard.records import Attribution, positive
from ard.single_and_couples import COUPLES, SINGLE, table, validation_sets
from ard.world import World
from tests.toy_attribution import ROOT, toy_dataset


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    place = tmp_path_factory.mktemp("sets")
    return validation_sets(toy_dataset(place / "toy", per_class=1), World.load(ROOT / "data/world"), place / "couples", 1)


def answers(dataset, right: bool, other: bool = False):
    """X first or last, in the box of the individual or of the other one in its image."""
    found = {}
    for sample in dataset.samples["val"]:
        home, listed = positive(sample, dataset.gallery["val"]), []
        for image in dataset.gallery["val"]:
            own = image.image_id == home.image_id
            thing = next((o for o in image.objects if (o.individual_id == sample.individual_id) != other), image.objects[0])
            listed.append(Attribution(image.image_id, thing.box, float(own if right else not own)))
        found[sample.sample_id] = listed
    return found


def test_both_sets_hold_the_same_queries_and_couples_two_of_a_class(sets):
    assert [s.sample_id for s in sets[SINGLE].samples["val"]] == [s.sample_id for s in sets[COUPLES].samples["val"]]
    assert len({s.concept_id for s in sets[SINGLE].samples["val"]}) == len(sets[SINGLE].samples["val"]) > 1
    assert all(len(image.objects) == 2 for image in sets[COUPLES].gallery["val"])


def test_the_table_says_who_is_right_where(sets):
    told = {"used": (True, False), "wrong image": (False, False), "wrong one": (True, True)}
    rows = table({name: {method: answers(d, right, other and name == COUPLES) for method, (right, other) in told.items()}
                  for name, d in sets.items()}, sets)
    by = {row["method"]: row for row in rows}
    assert list(by) == list(told)
    assert [by[m]["recall_1_single"] for m in told] == [1, 0, 1] and [by[m]["recall_1_couples"] for m in told] == [1, 0, 0]
    assert [by[m]["within_image"] for m in told] == [1, 1, 0]
    assert by["used"]["minus_single"] == 0 and by["wrong image"]["minus_single_high"] == -1 == by["wrong one"]["minus_couples"]
    assert all(np.isfinite(value) for row in rows for key, value in row.items() if key != "method")
