"""`ard.metrics` against plain loops over everything, on random galleries; intervals on cases with a known answer."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ard.abstention import abstention, auroc, separation
from ard.chances import calibration_error
from ard.intervals import bootstrap_mean, paired_difference
from ard.metrics import (ANALYTIC_ROWS, Outcome, TABLE2_COLUMNS, analytic_row, blind_inverse_rank, blind_recall, evaluate,
                         facts, rank_profile, strata, table2_row, to_csv, values)
from ard.records import Attribution, Dataset, GalleryImage, GroundTruth, Sample

BOX, MISS = (0.0, 0.0, 10.0, 10.0), (30.0, 30.0, 40.0, 40.0)
HALF = (0.0, 0.0, 10.0, 5.0)  # IoU with BOX exactly .5


def world(n_images=6, n_classes=2, n_drawings=2, queries=2, seed=0):
    """A random gallery: image i shows individual i, sometimes fillers of other classes or a second one of its class."""
    rng = random.Random(seed)
    images, samples = [], []
    for i in range(n_images):
        kind = f"c{rng.randrange(n_classes)}"
        own = GroundTruth(kind, f"i{i}", f"{kind}d{rng.randrange(n_drawings)}", f"g{rng.randrange(2)}", BOX)
        extra = tuple(GroundTruth(f"c{rng.randrange(n_classes)}", "", "filler", "g9", MISS)
                      for _ in range(rng.randrange(3)))
        images.append(GalleryImage(f"{i}.png", f"x{i}", (own, *extra)))
        samples += [Sample(f"s{i}-{q}", "q.png", BOX, "p", kind, f"i{i}", f"{i}.png", BOX, q, "beach",
                           ("photo", "oil painting")[q % 2], "test", f"i{i}", own.drawing, own.designer)
                    for q in range(queries)]
    return Dataset(None, {"test": tuple(samples)}, {"test": tuple(images)})


def answers(data, score, box=lambda s, im: BOX):
    return {s.sample_id: [Attribution(im.image_id, box(s, im), score(s, im)) for im in data.gallery["test"]]
            for s in data.samples["test"]}


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(2, 14), st.integers(1, 3), st.integers(1, 4))
def test_evaluate_equals_loops(seed, n_images, n_classes, levels):
    data, rng = world(n_images, n_classes, seed=seed), random.Random(seed)
    given_ = answers(data, lambda s, im: float(rng.randrange(levels)),
                     lambda s, im: rng.choice((BOX, MISS, HALF, None)))
    outcomes = evaluate(given_, data)
    got = values(outcomes, gated=True)
    for i, s in enumerate(data.samples["test"]):
        mine = next(a for a in given_[s.sample_id] if f"{a.image_id[1:]}.png" == s.exemplar_file)
        rank = same = 1
        for a, im in zip(given_[s.sample_id], data.gallery["test"], strict=True):
            if a.image_id != mine.image_id and not a.score < mine.score:
                rank += 1
                same += s.class_name in [o.class_name for o in im.objects]
        ok = mine.box in (BOX, HALF)
        assert (outcomes[i].rank, outcomes[i].same_class_rank) == (rank, same)
        for k in (1, 5, 10):
            assert got[f"recall_{k}"][i] == (1.0 if ok and rank <= k else 0.0)
        assert got["inverse_rank_5"][i] == (1 / rank if ok and rank <= 5 else 0.0)
        assert got["recall_1_ungated"][i] == (rank == 1)
        assert got["box_acc"][i] == ok


@given(st.integers(1, 6), st.integers(1, 8))
def test_blind_guessing_equals_all_orders(n, k):
    ranks = [order.index(0) + 1 for order in itertools.permutations(range(n))]
    assert np.isclose(blind_recall(n, k), np.mean([r <= k for r in ranks]))
    assert np.isclose(blind_inverse_rank(n, k), np.mean([1 / r if r <= k else 0 for r in ranks]))


@pytest.mark.parametrize("seed", range(3))
def test_oracle_rows_are_what_such_a_method_gets_on_average(seed):
    """Rank by class (drawing, designer), break ties at random, many times: the mean is the analytic row."""
    data, rng = world(8, 2, seed=seed, queries=1), random.Random(seed)
    known = [facts(s, data.gallery["test"]) for s in data.samples["test"]]
    wanted = {"chance": lambda s, o: True, "class oracle": lambda s, o: o.class_name == s.class_name,
              "drawing oracle": lambda s, o: (o.class_name, o.drawing) == (s.class_name, s.drawing),
              "designer oracle": lambda s, o: (o.class_name, o.designer) == (s.class_name, s.designer)}
    for name, match in wanted.items():
        rows = []
        for _ in range(300):
            given_ = answers(data, lambda s, im, m=match: any(m(s, o) for o in im.objects) + rng.random() / 2,
                             lambda s, im: None)
            per_query = values(evaluate(given_, data), gated=False)
            rows.append({column: v.mean() for column, v in per_query.items()})
        exact = analytic_row("d", name, known)
        for column in ("recall_1", "recall_5", "inverse_rank_5", "same_class_recall_1"):
            assert abs(np.mean([r[column] for r in rows]) - exact[column]) < 0.05, (name, column)


def test_gated_oracle_of_a_row():
    data = world(10, 2, seed=3)
    outcomes = evaluate(answers(data, lambda s, im: 0.0, lambda s, im: BOX if s.template == 0 else MISS), data)
    row = table2_row("mini", "m", outcomes)
    want = np.mean([0.5 / (o.facts.n_class * o.facts.instances) for o in outcomes])
    assert row["gated"] is True and row["box_acc"] == 0.5
    assert np.isclose(row["class_oracle_recall_1"], want, atol=1e-6)
    assert any(o.facts.instances > 1 for o in outcomes)
    ungated = table2_row("mini", "m", outcomes, gated=False)
    assert np.isclose(ungated["class_oracle_recall_1"], np.mean([1 / o.facts.n_class for o in outcomes]), atol=1e-6)


def test_constant_scores_earn_nothing_and_perfect_ones_everything():
    data = world(7, seed=1)
    flat = table2_row("d", "flat", evaluate(answers(data, lambda s, im: 1.0), data))
    assert flat["recall_1"] == flat["same_class_recall_1"] == flat["recall_5"] == 0 and flat["recall_10"] == 1
    best = table2_row("d", "best", evaluate(answers(data, lambda s, im: float(im.file == s.exemplar_file)), data))
    assert best["recall_1"] == best["inverse_rank_5"] == best["same_class_recall_1"] == best["box_acc"] == 1
    lost = table2_row("d", "lost", evaluate(answers(data, lambda s, im: -np.inf, lambda s, im: None), data))
    assert lost["box_acc"] is None and lost["gated"] is False and lost["recall_1"] == 0


def test_rows_have_exactly_the_columns_and_write_as_csv():
    data = world(9, seed=2)
    outcomes = evaluate(answers(data, lambda s, im: 0.0), data)
    rows = [analytic_row("d", name, [o.facts for o in outcomes]) for name in ANALYTIC_ROWS]
    rows.append(table2_row("d", "m", outcomes))
    assert all(tuple(r) == TABLE2_COLUMNS for r in rows)
    lines = to_csv(rows, TABLE2_COLUMNS).splitlines()
    assert lines[0] == ",".join(TABLE2_COLUMNS) and len(lines) == 6 and lines[1].startswith("d,chance,False,,")
    assert rows[0]["n_queries"] == 18 and rows[0]["n_exemplars"] == 9 and rows[0]["gallery_size"] == 9
    assert rows[0]["recall_1"] == pytest.approx(1 / 9, abs=1e-6)
    assert rows[0]["recall_1"] <= rows[1]["recall_1"] <= rows[2]["recall_1"]


def test_paper_numbers_for_chance():
    assert round(1 / 93, 4) == 0.0108
    assert np.allclose([blind_recall(93, 5), blind_recall(93, 10), blind_inverse_rank(93, 5)], [.0538, .1075, .0246],
                       atol=5e-5)


def test_queries_may_be_a_subset_but_galleries_may_not():
    data = world(4)
    given_ = answers(data, lambda s, im: 0.0)
    few = {k: given_[k] for k in list(given_)[:3]}
    assert len(evaluate(few, data)) == 3
    with pytest.raises(ValueError, match="one attribution for each of 4 gallery images, found 3"):
        evaluate({"s0-0": given_["s0-0"][:3]}, data)
    with pytest.raises(ValueError, match="found 5 for 4 images"):
        evaluate({"s0-0": given_["s0-0"] + given_["s0-0"][:1]}, data)
    with pytest.raises(ValueError, match="NaN"):
        evaluate({"s0-0": [Attribution(f"x{i}", None, float("nan")) for i in range(4)]}, data)
    with pytest.raises(ValueError, match="unknown"):
        evaluate({"other": []}, data)


def test_rank_profile_and_strata_add_up():
    data = world(20, 3, seed=5)
    rng = random.Random(0)
    outcomes = evaluate(answers(data, lambda s, im: rng.random(), lambda s, im: rng.choice((BOX, MISS))), data)
    profile = rank_profile(outcomes, gated=False)
    assert [r["ranks"] for r in profile] == ["1", "2-5", "6-10", "11-20"]
    assert sum(r["share"] for r in profile) == pytest.approx(1)
    assert sum(r["share"] for r in rank_profile(outcomes)) == pytest.approx(values(outcomes, True)["box_acc"].mean())
    rows = strata(outcomes)
    for name in ("class", "medium", "context", "area", "same drawing elsewhere"):
        assert sum(r["n_queries"] for r in rows if r["stratum"] == name) == 40
        weighted = sum(r["n_queries"] * r["recall_1"] for r in rows if r["stratum"] == name) / 40
        assert weighted == pytest.approx(table2_row("d", "m", outcomes)["recall_1"], abs=1e-5)


def test_bootstrap_resamples_clusters():
    values_ = np.tile([1.0, 0.0], 50).repeat(10)
    clusters = np.arange(100).repeat(10)
    clustered, naive = bootstrap_mean(values_, clusters), bootstrap_mean(values_, np.arange(1000))
    assert clustered.mean == 0.5 and clustered.low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02)
    assert naive.high - naive.low < (clustered.high - clustered.low) / 2
    assert bootstrap_mean(values_, clusters) == clustered
    assert np.isnan(bootstrap_mean([1.0, 0.0], ["a", "a"]).low)
    with pytest.raises(ValueError, match="one finite value per query"):
        bootstrap_mean([1.0, np.nan], ["a", "b"])


def test_interval_covers_the_truth():
    rng, hits = np.random.default_rng(0), 0
    for i in range(200):
        ability = rng.beta(2, 5, size=60)
        got = bootstrap_mean((rng.random((60, 5)) < ability[:, None]).ravel().astype(float), np.arange(60).repeat(5),
                             repeats=400, seed=i)
        hits += got.low <= 2 / 7 <= got.high
    assert hits >= 180


def test_paired_difference_is_tighter_than_two_intervals():
    rng = np.random.default_rng(1)
    base, clusters = rng.random(300), np.arange(100).repeat(3)
    better = paired_difference(base + 0.05, base, clusters)
    assert better.low == pytest.approx(0.05) and better.high == pytest.approx(0.05)
    with pytest.raises(ValueError, match="same queries"):
        paired_difference([1.0], [1.0, 2.0], ["a"])


def test_abstention():
    data = world(6, seed=4)
    sure = abstention(answers(data, lambda s, im: float(im.file == s.exemplar_file)), data)
    assert sure["auroc"] == 1 and sure["ece"] == 0
    blind = abstention(answers(data, lambda s, im: 5.0), data)
    assert blind == {"auroc": 0.5, "ece": None, "ece_calibrated": None, "n_queries": 12}
    with pytest.raises(ValueError, match="at least one"):
        auroc([], [1])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        calibration_error([2.0], [1])


def test_knowing_the_class_separates_all_pairs_and_not_its_own():
    data = world(6, seed=4)
    def knows_class(s, im): return float(s.class_name in {o.class_name for o in im.objects})
    found = separation(answers(data, knows_class), data)
    assert found["same_class_auroc"] == 0.5 and found["all_pairs_auroc"] == found["class_oracle_all_pairs_auroc"] > 0.5
    sure = separation(answers(data, lambda s, im: float(im.file == s.exemplar_file)), data)
    assert sure["same_class_auroc"] == sure["all_pairs_auroc"] == 1
    assert sure["class_oracle_all_pairs_auroc"] == found["class_oracle_all_pairs_auroc"]


def asked_alike(n_exemplars=8, queries=5):
    """Every query of an exemplar fares alike, every second exemplar well: only exemplars may be resampled."""
    data = world(n_exemplars, queries=queries)
    good = {f"i{i}" for i in range(0, n_exemplars, 2)}
    return evaluate(answers(data, lambda s, im: float((im.file == s.exemplar_file) == (s.concept_id in good))), data)


def test_intervals_of_rows_and_strata_resample_exemplars():
    outcomes = asked_alike()
    row = table2_row("d", "m", outcomes)
    want = bootstrap_mean(values(outcomes, True)["recall_1"], [o.facts.sample.concept_id for o in outcomes])
    assert (row["ci_low_recall_1"], row["ci_high_recall_1"]) == (round(want.low, 6), round(want.high, 6))
    [beach] = [r for r in strata(outcomes) if r["stratum"] == "context"]
    assert (beach["ci_low_recall_1"], beach["ci_high_recall_1"]) == (round(want.low, 6), round(want.high, 6))


def test_rank_profile_by_hand():
    data = world(20, queries=1)
    known = [facts(s, data.gallery["test"]) for s in data.samples["test"]]
    outcomes = [Outcome(f, rank, 1, None) for f, rank in zip(known, [1] * 4 + [3] * 8 + [20] * 8)]
    rows = {r["ranks"]: r for r in rank_profile(outcomes)}
    assert [rows[k]["share"] for k in ("1", "2-5", "6-10", "11-20")] == [0.2, 0.4, 0, 0.4]
    assert [rows[k]["per_rank"] for k in ("1", "2-5", "6-10", "11-20")] == [0.2, 0.1, 0, 0.04]
    assert {r["chance_per_rank"] for r in rows.values()} == {0.05}


def test_area_is_a_share_of_the_picture():
    data = world(1, queries=1)
    [image], [sample] = data.gallery["test"], data.samples["test"]
    assert facts(sample, [replace(image, width=40, height=10)]).area == pytest.approx(10 * 10 / (40 * 10))


def test_look_alikes_elsewhere_are_counted_in_other_pictures():
    """Two cats of one drawing by one designer, one of another drawing by the first's designer, one of neither."""
    kinds = [("d0", "g0"), ("d0", "g0"), ("d1", "g0"), ("d2", "g1")]
    images = tuple(GalleryImage(f"{i}.png", f"x{i}", (GroundTruth("cat", f"i{i}", d, g, BOX),)) for i, (d, g) in enumerate(kinds))
    samples = [Sample(f"s{i}", "q.png", BOX, "p", "cat", f"i{i}", f"{i}.png", BOX, 0, "beach", "photo", "test", f"i{i}", d, g)
               for i, (d, g) in enumerate(kinds)]
    rows = strata([Outcome(facts(s, images), 1, 1, None) for s in samples])
    found = {(r["stratum"], r["value"]): r["n_queries"] for r in rows if r["stratum"].endswith("elsewhere")}
    assert found == {("same drawing elsewhere", "yes"): 2, ("same drawing elsewhere", "no"): 2,
                     ("same designer elsewhere", "yes"): 3, ("same designer elsewhere", "no"): 1}


def test_an_ungated_row_still_tells_how_often_the_box_is_right_and_chance_is_a_mean_over_queries():
    data = world(10, 3, seed=3)
    outcomes = evaluate(answers(data, lambda s, im: 0.0, lambda s, im: BOX if s.template == 0 else MISS), data)
    row = table2_row("d", "m", outcomes, gated=False)
    assert row["box_acc"] == 0.5
    sizes = [o.facts.n_class for o in outcomes]
    assert len(set(sizes)) > 1 and row["same_class_chance"] == pytest.approx(np.mean([1 / n for n in sizes]), abs=1e-6)


def test_a_confidence_of_one_belongs_to_the_last_bin():
    assert calibration_error([0.9, 1.0], [1, 0]) == pytest.approx(abs(0.9 + 1.0 - 1) / 2)
