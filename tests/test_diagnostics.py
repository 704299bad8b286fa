"""A method that reads one thing of a question is found out to read that thing and nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from ard import diagnostics
from ard.diagnostics import QUESTIONS, ask_changed, change_summary, changed_query, moved_box, other_name, swap_partner
from ard.geometry import box_iou
from ard.records import Attribution
from tests.toy_attribution import CLASSES


def only(reads, dataset):
    """Answers 1 for the image of what it reads, .5 for images of the class it is told, .2 else."""
    own = {s.sample_id: s for s in dataset.samples["test"]}

    def ask(query, gallery):
        true, scores = own[query.sample.sample_id], []
        for image in gallery:
            named = query.sample.class_name in {o.class_name for o in image.objects}
            scores.append({"exemplar": float(image.file == true.exemplar_file), "text": 0.5 if named else 0.2,
                           "box": 1.0 if query.sample.query_box == true.query_box else 0.1, "nothing": 0.7}[reads])
        return {reads: [Attribution(i.image_id, None, score) for i, score in zip(gallery, scores)]}

    return ask


def test_partners_are_other_individuals_of_the_class_and_template(dataset):
    for sample in dataset.samples["test"]:
        partner = swap_partner(sample, dataset.samples["test"])
        assert partner.class_name == sample.class_name and partner.template == sample.template
        assert partner.individual_id != sample.individual_id and swap_partner(sample, [sample]) is None


@pytest.mark.parametrize("reads", [*QUESTIONS, "nothing"])
def test_what_is_read_is_found_and_nothing_else(dataset, reads):
    rows = ask_changed(only(reads, dataset), dataset.samples["test"], dataset, "test", dataset.query)
    assert len(rows) == len(QUESTIONS) * len(dataset.samples["test"])
    found = {row["question"]: row for row in change_summary(rows, "generated")}
    for question, row in found.items():
        assert row["share_fallen"] == (question == reads), (question, row)
        assert row["ci_low"] == row["ci_high"] == row["share_fallen"] and row["n_changed"] == len(dataset.samples["test"])
    assert found["exemplar"]["partner_above"] == (reads == "exemplar") and found["text"]["partner_above"] is None


def test_a_sample_without_a_rival_is_left_out(dataset):
    lonely = replace(dataset, samples={"test": dataset.samples["test"][:1]})
    assert ask_changed(only("text", dataset), lonely.samples["test"], lonely, "test", dataset.query) == []


def test_one_thing_changes_at_a_time(dataset):
    sample = dataset.samples["test"][0]
    query, partner = dataset.query(sample), dataset.query(swap_partner(sample, dataset.samples["test"]))
    for question, field in (("text", "class_name"), ("box", "query_box")):
        changed = changed_query(question, query, partner, CLASSES)
        assert changed.image is query.image and replace(changed.sample, **{field: getattr(sample, field)}) == sample
        assert getattr(changed.sample, field) != getattr(sample, field)
    swapped = changed_query("exemplar", query, partner, CLASSES)
    assert swapped.image is partner.image and swapped.sample.query_box == partner.sample.query_box
    assert swapped.sample.class_name == sample.class_name


def test_other_names_are_other_and_fixed(dataset):
    names = [other_name(s, CLASSES) for s in dataset.samples["test"]]
    assert all(n != s.class_name and n in CLASSES for n, s in zip(names, dataset.samples["test"])) and len(set(names)) > 1
    assert names == [other_name(s, CLASSES[::-1]) for s in dataset.samples["test"]]


def test_moved_boxes_keep_their_size_and_leave_their_place():
    rng = np.random.default_rng(0)
    for _ in range(50):
        low = rng.uniform(0, 30, 2)
        box = (*low, *(low + rng.uniform(5, 30, 2)))
        moved = moved_box(box, 64, 64)
        assert np.allclose(np.subtract(moved[2:], moved[:2]), np.subtract(box[2:], box[:2]))
        assert min(moved) >= -1e-9 and max(moved) <= 64 + 1e-9
        corners = [(x, y, x + moved[2] - moved[0], y + moved[3] - moved[1])
                   for x in (0, 64 - moved[2] + moved[0]) for y in (0, 64 - moved[3] + moved[1])]
        assert box_iou(moved, box)[0, 0] == pytest.approx(min(box_iou(c, box)[0, 0] for c in corners))
    assert diagnostics.moved_box((0, 0, 64, 64), 64, 64) == (0, 0, 64, 64)
