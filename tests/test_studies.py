"""The same exemplars under other conditions: what is learned and drawn, what methods are asked, and what is made of it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ard import studies
from ard.customize import CustomizeConfig
from ard.evaluation import alone
from ard.exemplars import Exemplar, read_mask, write_mask
from ard.generate import Drawn, GenerateConfig
from ard.records import Attribution, read_image
from tests.tiny_pipeline import tiny_pipeline

ITS_BOX = (4.0, 4.0, 28.0, 28.0)


def test_conditions_differ_in_what_they_are_named_after_alone():
    known = studies.conditions([0.1], [0.0, 0.2], [0.3], seed=4)
    assert [c.name for c in known] == ["as used", "as photographed", "size 0.1", "Gaussian noise 0", "Gaussian noise 0.2", "salt and pepper 0.3"]
    assert [dict(c.recipe) for c in known] == [{}, {"frame": 0.0}, {"frame": 0.1}, {}, {}, {}]
    image, mask = np.full((32, 32, 3), 128, np.uint8), np.ones((32, 32), bool)
    one, two = (Exemplar(name, "", "cat", ITS_BOX, 1.0, "", 1) for name in ("one", "two"))
    seen = [c.alter(one, image, mask) for c in known]
    assert all(m is mask for _, m in seen) and all((picture == image).all() for picture, _ in seen[:4])
    assert (seen[4][0] != image).any() and (known[4].alter(one, image, mask)[0] == seen[4][0]).all(), "the same at every call"
    assert (known[4].alter(two, image, mask)[0] != seen[4][0]).any(), "its own pattern for each exemplar"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    root = tmp_path_factory.mktemp("workshop")
    (root / "words").mkdir()
    tiny_pipeline(root / "words").save_pretrained(root / "model")
    exemplars = []
    for n in range(2):
        Image.fromarray(np.random.default_rng(n).integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(root / f"{n}.png")
        mask = np.zeros((32, 32), bool)
        mask[4:28, 4:28] = True
        write_mask(root / f"masks/{n}.png", mask)
        exemplars.append(Exemplar(f"c{n}", f"{n}.png", "cat", ITS_BOX, 0.9, f"masks/{n}.png", 576))

    def detect(image, class_name):  # nothing in dark pictures
        return (np.array([[2.0, 2.0, 30.0, 30.0]]), np.array([0.5])) if image.mean() > 100 else (np.zeros((0, 4)), np.zeros(0))

    config = CustomizeConfig(token_steps=1, weight_steps=1, batch=2, token_lr=0.1, weight_lr=0.1)
    return root, exemplars, studies.Workshop(root / "model", config, {"max_bytes": 60_000, "workers": 1, "together": 2},
                                             GenerateConfig(steps=1, guidance=2.0), detect, seed=3)


def blacked(exemplar, image, mask):
    return image * 0, ~mask


def test_a_condition_changes_what_is_learned_and_nothing_else(workshop, tmp_path):
    root, exemplars, shop = workshop
    plain = shop.make(studies.Condition("plain"), exemplars, root, tmp_path)
    black = shop.make(studies.Condition("black", alter=blacked), exemplars, root, tmp_path)
    assert len(plain) == len(black) == 20
    assert [d.seed for d in plain] == [d.seed for d in black] and [d.prompt for d in plain] == [d.prompt for d in black]
    assert [d.sample_id.split("/")[1] for d in plain] == [d.sample_id.split("/")[1] for d in black]
    assert any((read_image(a.file) != read_image(b.file)).any() for a, b in zip(plain, black))
    assert (read_image(tmp_path / "plain/images/c0.png") == read_image(root / "0.png")).all()
    assert not read_image(tmp_path / "black/images/c0.png").any()
    assert (read_mask(tmp_path / "black/masks/c0.png") == ~read_mask(root / "masks/0.png")).all()


def test_a_recipe_is_part_of_a_condition(workshop, tmp_path):
    root, exemplars, shop = workshop
    one, other, same = (shop.make(studies.Condition(name, recipe=recipe), exemplars[:1], root, tmp_path)
                        for name, recipe in (("a", {}), ("b", {"frame": 0.2}), ("c", {"frame": 0.0})))
    drawn = [[read_image(d.file) for d in made] for made in (one, other, same)]
    assert (np.array(drawn[0]) == drawn[2]).all() and (np.array(drawn[0]) != drawn[1]).any()


def test_a_killed_run_goes_on_and_what_cannot_be_learned_is_named(workshop, tmp_path):
    root, exemplars, shop = workshop
    first = shop.make(studies.Condition("x"), exemplars, root, tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    assert shop.make(studies.Condition("x"), exemplars, root, tmp_path) == first
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}

    def hidden(exemplar, image, mask):
        return image, mask & False
    with pytest.raises(RuntimeError, match="unseen: .*non-empty"):
        shop.make(studies.Condition("unseen", alter=hidden), exemplars, root, tmp_path)


# ---- asking ----------------------------------------------------------------------------------------------------------
def drawn_like(sample, name, reason=""):
    return Drawn(name, sample.concept_id, sample.class_name, 6, "words", 0, f"/{name}.png", None if reason else (1.0, 2.0, 30.0, 40.0), 0.5,
                 reason, 0.0)


def test_queries_are_the_pictures_that_passed_with_the_source_of_their_concept(dataset):
    one, other = dataset.samples["test"][0], dataset.samples["test"][-1]
    found = studies.queries([drawn_like(one, "a"), drawn_like(other, "b", "not found"), drawn_like(other, "c")], dataset.samples["test"])
    assert [s.sample_id for s in found] == ["a", "c"]
    assert found[0] == replace(one, sample_id="a", query_file="/a.png", query_box=(1.0, 2.0, 30.0, 40.0), prompt="words", template=6,
                               context="beach", medium="watercolor illustration")


def test_methods_choose_among_the_pictures_of_the_class(dataset, tmp_path):
    samples, seen = dataset.samples["test"], []

    class Method:
        """Knows the source of every first query of a concept."""
        def rank(self, query, gallery):
            seen.append({im.objects[0].class_name for im in gallery} | {query.sample.class_name})
            knows = query.sample.sample_id.endswith("_0")
            return [Attribution(im.image_id, None, float((im.image_id == query.sample.concept_id) == knows)) for im in gallery]

    asked = studies.ask_in_class({"m": alone("m", Method())}, dataset, samples, tmp_path)
    assert all(len(classes) == 1 for classes in seen) and len(asked) == len(samples) == len(seen)
    rows = asked.set_index("sample_id").loc[[s.sample_id for s in samples]]
    assert (rows["score"] == [float(s.sample_id.endswith("_0")) for s in samples]).all() and (rows["first"] == (rows["score"] == 1)).all()
    again = studies.ask_in_class({"m": alone("m", None)}, dataset, samples, tmp_path)
    assert again.equals(asked), "kept answers are not asked again"


# ---- what it says ----------------------------------------------------------------------------------------------------
def test_conditions_are_paired_by_exemplar():
    pictures = pd.DataFrame([("base", "a", 1.0), ("base", "a", 0.0), ("base", "b", 1.0), ("less", "a", 0.0), ("less", "b", 1.0), ("less", "b", np.nan)],
                            columns=["condition", "concept", "known"])
    base, less = studies.by_condition(pictures, ["known"], "base")
    assert (base["known"], base["known_minus"], base["n_pictures"], base["n_exemplars"]) == (pytest.approx(2 / 3, abs=1e-6), 0, 3, 2)
    assert (less["known"], less["known_minus"], less["n_pictures"]) == (0.5, -0.25, 3), "half of a's, none of b's"
    assert less["known_minus_low"] == -0.5 and less["known_minus_high"] == 0
    nobody = studies.by_condition(pictures.assign(known=np.nan), ["known"], "base")
    assert np.isnan(nobody[1]["known"]) and np.isnan(nobody[1]["known_minus_low"])


def asked_of(scores):
    return pd.DataFrame([{"method": name, "sample_id": n, "score": value} for name, mine in scores.items() for n, value in enumerate(mine)])


def test_a_score_that_follows_the_judge_has_auroc_one():
    truth, n = pd.Series([1, 0, 1, 0, 1, 0]), 6
    groups, where = pd.Series(list("aabbcc")), pd.Series(["x", "x", "x", "y", "y", "y"])
    rows = {r["method"]: r for r in studies.followed(asked_of({
        "inverse": 1.0 - truth, "ARD": truth + 0.1, "same": [0.5] * n, "blind": [-np.inf, 0, 2, 0, 3, 0]}), truth, groups, where)}
    assert list(rows)[0] == "ARD" and rows["ARD"]["auroc"] == 1 and rows["inverse"]["auroc"] == 0 and rows["same"]["auroc"] == 0.5
    assert rows["blind"]["auroc"] == pytest.approx(6 / 9, abs=1e-6), "nothing found scores below all"
    assert rows["inverse"]["ours_minus"] == rows["inverse"]["ours_minus_low"] == 1 and rows["ARD"]["ours_minus"] == 0
    of_three = studies.followed(asked_of({"ARD": [1, 0, 1, 0, 1, 0]}), truth, groups, pd.Series(list("xxyyzz")))
    assert np.isnan(of_three[0]["rank_correlation"]), "all conditions alike"
    unsure = studies.followed(asked_of({"ARD": range(6)}), truth * 0, groups, where)[0]
    assert np.isnan(unsure["auroc"]) and np.isnan(unsure["auroc_low"])


def test_the_interval_of_followed_resamples_exemplars():
    rng = np.random.default_rng(1)
    truth, scores = rng.random(60) < 0.5, rng.random(60)
    groups = pd.Series(np.repeat(np.arange(20), 3))
    found = studies.followed(asked_of({"ARD": scores}), pd.Series(truth), groups, pd.Series(["x"] * 60), repeats=200)[0]
    draws = np.random.default_rng(0).multinomial(20, np.full(20, 1 / 20), 200)
    brute = []
    for times in draws:
        rows = np.concatenate([np.nonzero(groups == g)[0].repeat(t) for g, t in enumerate(times)])
        yes, no = scores[rows[truth[rows]]], scores[rows[~truth[rows]]]
        brute.append(np.mean(yes[:, None] > no[None]) + 0.5 * np.mean(yes[:, None] == no[None]))
    assert (found["auroc_low"], found["auroc_high"]) == pytest.approx(tuple(np.quantile(brute, [0.025, 0.975])), abs=1e-6)


