"""Groups of an exemplar's pictures, what is found with them, and what is fitted to them."""

import csv
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ard import asked_together
from ard.baselines.closeups import all_raised, looks
from ard.detector.closeup import CloseUp, CloseUpSettings
from ard.detector.features import REGION
from ard.records import Attribution
from ard.together import Pool

ROOT = Path(__file__).parents[1]


def test_groups_are_of_one_exemplar_nested_and_all_of_it_but_once(dataset):
    samples = dataset.samples["test"]  # two of each exemplar
    found = asked_together.groups(samples, [1, 2, 5], 3, seed=1)
    assert all(len({s.concept_id for s in group}) == 1 and len(set(group)) == len(group) for _, group in found)
    concepts = {s.concept_id for s in samples}
    of = {n: [group for m, group in found if m == n] for n in (1, 2, 5)}
    assert len(of[1]) == 3 * len(concepts) and {len(group) for group in of[1]} == {1}
    assert len(of[2]) == len(of[5]) == len(concepts) and {len(group) for group in of[2] + of[5]} == {2}
    assert {(g[0].concept_id, g[0].sample_id) for g in of[2]} <= {(g[0].concept_id, g[0].sample_id) for g in of[1]}, "nested"
    assert found == asked_together.groups(samples, [1, 2, 5], 3, seed=1)


def test_halves_share_no_exemplar(dataset):
    pictures = asked_together.groups(dataset.samples["test"], [1, 2], 2)
    one, two = ({g[0].concept_id for _, g in half} for half in asked_together.halves(pictures))
    assert not one & two and len(one | two) == len({s.concept_id for s in dataset.samples["test"]}) and abs(len(one) - len(two)) <= 1


def said(dataset, samples, right, wrong=0.5, box=None):
    """Answers that give X `right` for an exemplar's first picture and 0.3 for others, every other image `wrong`."""
    first = {s.concept_id: s.sample_id for s in reversed(samples)}
    return {s.sample_id: [Attribution(im.image_id, box or s.exemplar_box,
                                      wrong if im.file != s.exemplar_file else right if first[s.concept_id] == s.sample_id else 0.3)
                          for im in dataset.gallery["test"]] for s in samples}


def test_one_sure_picture_carries_those_that_fail(dataset):
    samples = dataset.samples["test"]
    pictures = asked_together.groups(samples, [1, 2], 20)
    right = asked_together.asked(said(dataset, samples, 0.9), pictures, dataset, "test", True)
    corner = asked_together.asked(said(dataset, samples, 0.9, box=(0.0, 0.0, 2.0, 2.0)), pictures, dataset, "test", True)
    none = {name: [Attribution(a.image_id, None, a.score) for a in of] for name, of in said(dataset, samples, 0.9).items()}
    whole = asked_together.asked(none, pictures, dataset, "test", False)
    rows = {(r["method"], r["n_pictures"]): r for r in asked_together.table({"ARD": right, "corner": corner, "whole": whole})}
    assert rows["ARD", 2]["recall_1"] == 1 > rows["ARD", 1]["recall_1"] > 0.2
    assert rows["ARD", 2]["more"] == pytest.approx(1 - rows["ARD", 1]["recall_1"], abs=1e-5) and rows["ARD", 2]["ours_minus"] == 0
    assert rows["corner", 2]["recall_1"] == 0 and rows["corner", 2]["first"] == 1 and rows["corner", 2]["ours_minus"] == 1
    assert rows["whole", 2]["recall_1"] == rows["whole", 2]["first"] == 1, "a method without boxes is not asked for one"
    assert rows["ARD", 1]["n_exemplars"] == len({s.concept_id for s in samples})


def test_words_that_prefer_another_image_are_counted_once(dataset):
    samples = dataset.samples["test"]
    pictures = asked_together.groups(samples, [1, 2], 2)
    # X has odds of 1 by its words and 2 by its likeness, all others 3 and 1
    told, words = (said_of(dataset, samples, *odds) for odds in ((2.0, 3.0), (1.0, 3.0)))
    for once, right in ((None, 0.0), (words, 1.0)):
        table = asked_together.asked(told, pictures, dataset, "test", True, once)
        assert table[table["n"] == 2]["right"].mean() == right and table[table["n"] == 1]["right"].mean() == 0


def said_of(dataset, samples, own, other):
    """Answers with X's box and the odds `own` to each picture's X, `other` to every other image."""
    return {s.sample_id: [Attribution(im.image_id, s.exemplar_box, odds / (1 + odds)) for im in dataset.gallery["test"]
                          for odds in [own if im.file == s.exemplar_file else other]] for s in samples}


def test_answers_of_a_smaller_gallery_are_part_of_those_of_a_larger(dataset):
    samples = dataset.samples["test"]
    fewer = replace(dataset, gallery={**dataset.gallery, "test": dataset.gallery["test"][:2]})
    (of,) = asked_together.among({"ARD": said(dataset, samples, 0.9)}, fewer, "test").values()
    assert {tuple(a.image_id for a in mine) for mine in of.values()} == {tuple(im.image_id for im in dataset.gallery["test"][:2])}


def test_what_is_said_without_the_source_does_not_know_its_score(dataset):
    samples = dataset.samples["test"]
    two = [said(dataset, samples, right) for right in (0.9, 0.1)]
    told = [asked_together.said_twice(lambda scores, ranked: scores / 10, both_ways(of), dataset, "test", 1) for of in two]
    assert told[0][1] == told[1][1] == {s.concept_id: [im.file for im in dataset.gallery["test"]].index(s.exemplar_file) for s in samples}
    right, wrong = (of[0][1][samples[0].sample_id] for of in told)
    assert len(right[0]) == len(dataset.gallery["test"]) == 1 + len(right[1])
    assert np.array_equal(right[1], wrong[1]) and not np.array_equal(right[0], wrong[0])


def both_ways(of):
    return {"ARD": of, asked_together.JUDGED: of}


def test_what_is_said_of_one_among_several_has_its_words_once(dataset):
    samples = dataset.samples["test"]
    of, words = (said_of(dataset, samples, *odds) for odds in ((6.0, 6.0), (1.0, 4.0)))
    alone, once = (asked_together.said_twice(lambda scores, ranked: ranked, told, dataset, "test", 2)[0][2] for told in (
        both_ways(of), {**both_ways(of), asked_together.WORDS: words}))
    name, place = samples[0].sample_id, [im.file for im in dataset.gallery["test"]].index(samples[0].exemplar_file)
    assert np.allclose(alone[name][0], 6 / 7)
    assert once[name][0][place] == pytest.approx(6 / 7) and np.allclose(np.delete(once[name][0], place), 3 / 4), "odds of 6 / 4 ** 0.5"


@pytest.mark.parametrize(("same", "growth"), [(True, 0.0), (False, 1.0)])
def test_the_pool_learns_how_much_news_a_further_picture_brings(same, growth):
    """Chances are exact: a picture sees N(2, 1) of X and N(0, 1) of other images, whose likelihood ratio is exp(2 x - 2)."""
    rng, images, one, place, pictures = np.random.default_rng(0), 6, {}, {}, []
    for concept in map(str, range(500)):
        place[concept] = int(rng.integers(images))
        seen = rng.normal(size=(1 if same else 3, 2, images)) * np.ones((3, 1, 1))
        seen[:, 0, place[concept]] += 2
        mine = [SimpleNamespace(concept_id=concept, sample_id=f"{concept} {n}") for n in range(3)]
        for picture, both in zip(mine, np.exp(2 * seen - 2) / images):
            one[picture.sample_id] = tuple(odds / (1 + odds.sum()) for odds in both)
        pictures += [(1, tuple(mine[:1])), (3, tuple(mine))]
    told = {1: one, 3: one}
    pool = asked_together.fit_pool(told, place, pictures)
    assert pool.growth == pytest.approx(growth, abs=0.15)
    rows = asked_together.told(asked_together.sure(told, pictures, pool))
    assert [row["n_pictures"] for row in rows] == [1, 3] and all(row["ece"] < 0.06 and abs(row["sure"] - 0.5) < 0.06 for row in rows)
    assert (rows[1]["auroc"] > rows[0]["auroc"] + 0.05) == (not same)


def test_users_have_the_pool_that_validation_gave():
    file = ROOT / "data/together/pool.csv"
    with file.open(encoding="utf-8") as lines:
        assert [{key: float(value) for key, value in row.items()} for row in csv.DictReader(lines)] == [asdict(Pool())]


def test_a_second_look_raises_what_ranks_and_what_is_sure_and_leaves_words(dataset):
    samples = dataset.samples["test"]
    whole = {name: said(dataset, samples, 0.9) for name in ("ARD", asked_together.JUDGED, asked_together.WORDS, "a rival")}
    rng = torch.Generator().manual_seed(0)
    look = CloseUp(torch.randn(REGION, 4, generator=rng), torch.zeros(4), 3.0, 0.5, CloseUpSettings(width=4))
    found, logits = asked_together.closer(whole, look, dataset, "test"), looks(look, whole["ARD"], dataset, "test")
    for name, of in whole.items():
        raised = all_raised(of, logits) if name in ("ARD", asked_together.JUDGED) else of
        assert found[name] == raised
    assert found["ARD"] != whole["ARD"]


def test_what_is_said_without_the_source_lacks_each_pictures_own(dataset):
    samples, files = dataset.samples["test"], [im.file for im in dataset.gallery["test"]]
    told, _ = asked_together.said_twice(lambda scores, ranked: scores, both_ways(said(dataset, samples, 0.9, 0.5)), dataset, "test", 1)
    for sample in samples:
        there, gone = told[1][sample.sample_id]
        assert there[files.index(sample.exemplar_file)] in (0.9, 0.3) and (gone == 0.5).all() and len(gone) == len(files) - 1
