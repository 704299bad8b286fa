"""A fault at its source: where it stands, who points at it, and what is mended then."""

from dataclasses import replace

import numpy as np
import pytest

from ard import repair
from ard.exemplars import Exemplar, read_mask
from ard.records import Attribution, read_image
from tests.test_studies import drawn_like

IMAGE = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
BOX = (4.0, 6.0, 20.0, 30.0)
ONE = Exemplar("one", "one.png", "cat", BOX, 1.0, "", 1)
MASK = np.zeros((32, 32), bool)
MASK[6:18, 4:20] = True


def test_regions_are_those_of_the_samples_with_masks_of_their_own(dataset, tmp_path):
    root = dataset.root
    found = repair.regions(dataset.samples["test"], root, lambda image, box: np.arange(64)[None] + np.zeros((64, 1)) < box[2])
    assert len(found) == len({s.concept_id for s in dataset.samples["test"]}) == 6
    of = {s.concept_id: s for s in dataset.samples["test"]}
    for e in found:
        assert (e.file, e.box, e.facts["individual_id"]) == (of[e.exemplar_id].exemplar_file, of[e.exemplar_id].exemplar_box,
                                                             of[e.exemplar_id].individual_id)
        assert read_mask(root / e.mask_file).sum() == e.mask_area > 0
    empty = repair.regions(dataset.samples["test"][:1], root, lambda image, box: np.zeros((64, 64), bool))[0]
    assert read_mask(root / empty.mask_file).sum() == empty.mask_area > 0, "all of R_X where there is no mask"


def test_one_exemplar_of_a_picture_and_so_many_of_a_class():
    people = [Exemplar(f"{kind}{n}", file, kind, BOX, 1.0, "", 1)
              for n, (kind, file) in enumerate([("cat", "a"), ("cat", "a"), ("cat", "b"), ("cat", "c"), ("dog", "d"), ("dog", "d")])]
    assert [e.exemplar_id for e in repair.one_of_an_image(people, 2)] == ["cat0", "cat2", "dog4"]


@pytest.mark.parametrize("name", repair.FAULTS)
def test_a_fault_stays_in_the_region_and_mending_the_region_undoes_it(name, dataset):
    fault = repair.FAULTS[name]
    bad, mask = fault(ONE, IMAGE, MASK)
    assert (bad != IMAGE).any() and (bad[:, 21:] == IMAGE[:, 21:]).all() and (bad[:6] == IMAGE[:6]).all()
    asked = [replace(dataset.samples["test"][0], concept_id="one", exemplar_file="/bad/one.png", exemplar_box=BOX)]

    def mended(*pick):
        return repair.mending(fault, {"one": pick} if pick else {}, asked)(ONE, IMAGE, MASK)
    for pick in ((), ("/bad/other.png", BOX), ("/bad/other.png", None)):
        assert all((a == b).all() for a, b in zip(mended(*pick), (bad, mask))), "another picture is mended, the fault stays"
    for pick in (("/bad/one.png", BOX), ("/bad/one.png", None)):
        assert all((a == b).all() for a, b in zip(mended(*pick), (IMAGE, MASK)))
    half, _ = mended("/bad/one.png", (4.0, 6.0, 20.0, 18.0))
    assert (half[:18] == IMAGE[:18]).all() and (half[18:] == bad[18:]).all(), "a box over half of it mends half"


def test_the_gallery_holds_the_faulty_pictures_and_the_rest_as_they_are(dataset, tmp_path):
    samples = dataset.samples["test"][:2]  # of one exemplar
    bad = tmp_path / "images" / f"{samples[0].concept_id}.png"
    made = repair.with_faults(dataset, samples, tmp_path)
    assert {s.exemplar_file for s in made.samples["test"]} == {str(bad.resolve())} and len(made.samples["test"]) == 2
    changed = [(a, b) for a, b in zip(dataset.gallery["test"], made.gallery["test"]) if a != b]
    assert len(changed) == 1 and changed[0] == (changed[0][0], replace(changed[0][0], file=str(bad.resolve())))
    assert changed[0][0].file == samples[0].exemplar_file and made.samples["train"] == dataset.samples["train"]


def answers(dataset, samples, right_box):
    """Every first query of a concept finds its X, with `right_box`; every second one the next picture."""
    files = [im.file for im in dataset.gallery["test"]]
    found = {}
    for s in samples:
        best = (files.index(s.exemplar_file) + (not s.sample_id.endswith("_0"))) % len(files)
        found[s.sample_id] = [Attribution(im.image_id, right_box or s.exemplar_box, float(n == best))
                              for n, im in enumerate(dataset.gallery["test"])]
    return found


def test_a_name_finds_what_a_box_of_its_class_lies_on(dataset):
    people = [Exemplar(s.concept_id, "", s.class_name, s.exemplar_box, 1.0, "", 1) for s in dataset.samples["test"][::2]]
    boxes = [[e.box, (0.0, 0.0, 3.0, 3.0)] if e.class_name == "cat" else [] if e.class_name == "dog" else [(0.0, 0.0, 3.0, 3.0)] for e in people]
    given = iter(boxes)
    share = repair.found_by_name(people, dataset.root, lambda image, name: (np.array(next(given), float).reshape(-1, 4), None))
    assert share == sum(e.class_name == "cat" for e in people) / len(people) > 0


def test_a_method_can_have_a_second_row():
    asks = [lambda query, gallery: {"rival": ["its answers"]},
            repair.called("rival, from 0.01", lambda query, gallery: {"rival": ["others"]})]
    answers = {row: found for ask in asks for row, found in ask(None, None).items()}
    assert answers == {"rival": ["its answers"], "rival, from 0.01": ["others"]}


def test_an_owner_follows_the_answers_to_the_pictures_asked_about(dataset):
    samples = dataset.samples["test"]
    given = answers(dataset, samples, None)
    chosen = repair.picks(samples, given, dataset, 1)
    assert chosen == {s.concept_id: (s.exemplar_file, s.exemplar_box) for s in samples}
    assert repair.well_chosen(chosen, samples) == set(chosen)
    wrong = repair.picks(samples[::-1], given, dataset, 1)
    assert all(wrong[s.concept_id][0] != s.exemplar_file for s in samples) and not repair.well_chosen(wrong, samples)
    corner = {name: (file, (0.0, 0.0, 2.0, 2.0)) for name, (file, _) in chosen.items()}
    assert not repair.well_chosen(corner, samples) and not repair.well_chosen({n: (f, None) for n, (f, _) in chosen.items()}, samples)


def test_several_pictures_outvote_one(dataset):
    one, two = dataset.samples["test"][:2]
    home, other = dataset.gallery["test"][0], dataset.gallery["test"][1]
    boxes = [(0.0, 0.0, 9.0, 9.0), (1.0, 1.0, 8.0, 8.0)]
    said = {s.sample_id: [Attribution(im.image_id, box, scores.get(im.image_id, 0.0)) for im in dataset.gallery["test"]]
            for s, box, scores in ((one, boxes[0], {home.image_id: 0.6, other.image_id: 0.5}), (two, boxes[1], {other.image_id: 0.9}))}
    assert repair.picks([one, two], said, dataset, 1) == {one.concept_id: (home.file, boxes[0])}
    assert repair.picks([one, two], said, dataset) == {one.concept_id: (other.file, boxes[1])}, "the box that answered highest there"


def test_a_thing_mended_whole_is_as_sound_and_all_others_stay_faulty():
    pictures = repair.pd.DataFrame([(c, who, f"{c} {who}") for c in ("sound", "bars", "bars, box mended") for who in "ab"],
                                   columns=["condition", "concept", "picture"])
    made = repair.made_whole(pictures, "bars", {"b"}, "whole")
    assert set(made["condition"]) == {"whole"} and dict(zip(made["concept"], made["picture"])) == {"a": "bars a", "b": "sound b"}


def test_pointing_at_the_fault_takes_the_picture_and_the_box(dataset):
    samples = dataset.samples["test"]
    said = {"ARD": answers(dataset, samples, None), "corner": answers(dataset, samples, (0.0, 0.0, 2.0, 2.0))}
    ours, corner = (repair.pointed_at(name, said, dataset) for name in said)
    assert (ours["found"], ours["pointed_at"], ours["ours_minus"]) == (0.5, 0.5, 0)
    assert (corner["found"], corner["pointed_at"], corner["ours_minus"], corner["n_queries"]) == (0.5, 0, 0.5, len(samples))


def test_likeness_is_to_the_sound_region(dataset, monkeypatch):
    sample = dataset.samples["test"][0]
    exemplar = Exemplar(sample.concept_id, sample.exemplar_file, sample.class_name, sample.exemplar_box, 1.0, "", 1)

    class Judges:
        def likeness(self, query, box, image, own):
            assert (image == read_image(dataset.root / sample.exemplar_file)).all() and own == sample.exemplar_box
            return 0.75
    monkeypatch.setattr(repair.studies, "judged", lambda judges, drawn, *rest: repair.pd.DataFrame({"sample_id": [d.sample_id for d in drawn]}))
    drawn = [replace(drawn_like(sample, "a"), file=str(dataset.root / sample.query_file)), drawn_like(sample, "b", "not found")]
    table = repair.judged(Judges(), drawn, [exemplar], dataset.root, 3, 0)
    assert table["likeness"][0] == 0.75 and np.isnan(table["likeness"][1])


def test_asked_together_counts_exemplars(dataset):
    samples = dataset.samples["test"]
    everyone = {s.sample_id: [Attribution(im.image_id, s.exemplar_box, float(im.file == s.exemplar_file))
                              for im in dataset.gallery["test"]] for s in samples}
    assert repair.together(everyone, dataset) == 1
    lost = samples[0].concept_id
    missed = {s.sample_id: [replace(a, box=(0.0, 0.0, 2.0, 2.0)) if s.concept_id == lost else a for a in everyone[s.sample_id]]
              for s in samples}
    assert repair.together(missed, dataset) == pytest.approx(1 - 1 / 6)
    nothing = {name: [replace(a, box=None, score=float("-inf")) for a in said] for name, said in everyone.items()}
    assert repair.together(nothing, dataset) == 0
