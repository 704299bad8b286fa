"""AbC: mappers, losses, augmented copies, the rows of the arena on a toy dataset, and the study against brute force."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ard.baselines import abc_rows
from ard.baselines.abc import AbCConfig, Learned, Mappers, _drawn, _pick, augmented, nt_xent, orthogonality, pair_features, train
from ard.baselines.abc_study import (Found, StudySettings, abc_study, base_scenes, distractor_features, ranks, spread, strongest,
                                     summaries, variants)
from ard.baselines.cosine import unit
from ard.baselines.kit import Kit
from ard.baselines.mappers import KINDS
from ard.baselines.self_supervised import mild
from ard.config import ConfigError
from ard.records import Gallery, Query
from ard.world import World
from tests.tiny_pipeline import tiny_pipeline
from tests.toy_attribution import ROOT


def mean_colour(images):
    """A fake encoder: centred mean colour and its square, (n, 6)."""
    colour = np.stack([np.asarray(im, np.float32).reshape(-1, 3).mean(0) for im in images]) / 128 - 1
    return np.concatenate([colour, colour**2], 1)


def pairs(exemplars=24, channels=12, queries=4, seed=0):
    """Generated features are real ones under a fixed rotation plus noise."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(channels, channels)))[0]
    real, owner = rng.normal(size=(exemplars, channels)), np.repeat(np.arange(exemplars), queries)
    return real, real[owner] @ turn + 0.3 * rng.normal(size=(len(owner), channels)), owner


# ---- mappers and losses ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["linear", "channel", "none"])
def test_these_mappers_start_at_the_identity(kind):
    features = np.random.default_rng(0).normal(size=(5, 8))
    for mapped in (Mappers(8, kind).map_real(features), Mappers(8, kind).map_synthetic(features)):
        assert np.allclose(mapped, unit(features), atol=1e-6)


def test_the_mlp_has_its_own_width_and_normalises_each_channel():
    torch.manual_seed(0)
    mappers = Mappers(8, "mlp", hidden=16, out=3).train()
    found = mappers.real(torch.randn(50, 8))
    assert found.shape == (50, 3) and found.mean(0).abs().max() < 1e-5
    assert torch.allclose(found.var(0, unbiased=False), torch.ones(3), atol=1e-3)
    assert not mappers.matrices and not Mappers(8, "channel").matrices and len(Mappers(8).matrices) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_mappers_survive_their_file(tmp_path, kind):
    real, synthetic, owner = pairs()
    mappers, _ = train(real, synthetic, owner, AbCConfig(epochs=3, mapper=kind, hidden=16, out=5, learning_rate=1e-2))
    mappers.save(tmp_path / "m.safetensors")
    again = Mappers.load(tmp_path / "m.safetensors")
    assert np.array_equal(mappers.map_real(real), again.map_real(real))
    assert np.array_equal(mappers.map_synthetic(real), again.map_synthetic(real))


def test_an_unknown_mapper_is_named():
    with pytest.raises(ValueError, match="expected one of linear, channel, mlp, none, found 'linaer'; did you mean 'linear'"):
        Mappers(4, "linaer")


def test_nt_xent_by_hand():
    """Two pairs with cosines [[1, 0], [0, -1]] at temperature 1: the rows and columns are the same two softmaxes."""
    real, synthetic = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -3.0]])
    expected = (np.log(1 + np.exp(0 - 1)) + np.log(1 + np.exp(0 + 1))) / 2
    assert float(nt_xent(real, synthetic, 1.0)) == pytest.approx(expected, abs=1e-6)


def test_without_the_regulariser_the_linear_mapper_leaves_orthogonality():
    real, synthetic, owner = pairs()
    gap, kept = {}, {}
    for strength in (0.0, 1.0):
        mappers, _ = train(real, synthetic, owner, AbCConfig(epochs=80, learning_rate=1e-2, regularisation=strength))
        gap[strength] = float(orthogonality(*mappers.matrices).detach())
        lengths = np.linalg.norm(mappers.map_real(real) - mappers.real.bias.detach().numpy(), axis=1)
        kept[strength] = np.abs(lengths - 1).max()
    assert gap[1.0] < 1 < 3 * gap[1.0] < gap[0.0], gap
    assert 1.5 * kept[1.0] < kept[0.0], "a rigid mapper keeps lengths"


def test_the_channel_mapper_turns_down_channels_that_say_nothing():
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(40), 4)
    signal, noise = rng.normal(size=(40, 6)), rng.normal
    real = np.concatenate([signal, noise(size=(40, 6))], 1)
    synthetic = np.concatenate([signal[owner], noise(size=(160, 6))], 1)
    mappers, _ = train(real, synthetic, owner, AbCConfig(epochs=60, learning_rate=2e-2, mapper="channel"))
    weight = (mappers.real.scale * mappers.synthetic.scale).detach().abs()
    assert weight[6:].max() < weight[:6].min()


def test_the_rate_falls_to_0_once_however_many_steps_an_epoch_has(monkeypatch):
    kept, schedule = [], torch.optim.lr_scheduler.CosineAnnealingLR
    monkeypatch.setattr(torch.optim.lr_scheduler, "CosineAnnealingLR", lambda *given: kept.append(schedule(*given)) or kept[0])
    train(*pairs(), AbCConfig(epochs=3, batch=6))
    assert kept[0].last_epoch == 3 * 4 and kept[0].get_last_lr() == pytest.approx([0])


# ---- training pairs --------------------------------------------------------------------------------------------------
def test_every_query_of_an_exemplar_teaches():
    real, synthetic, owner = pairs()
    first, config = np.arange(0, len(owner), 4), AbCConfig(epochs=2)
    other = np.random.default_rng(1).normal(size=synthetic.shape)
    other[first] = synthetic[first]
    assert train(real, synthetic, owner, config)[1] != train(real, other, owner, config)[1]


def test_one_copy_is_as_good_as_no_copies():
    real, synthetic, owner = pairs()
    config = AbCConfig(epochs=4)
    plain, copied = train(real, synthetic, owner, config), train(real[None], synthetic[None], owner, config)
    assert plain[1] == copied[1] and torch.equal(plain[0].real.weight, copied[0].real.weight)


def test_every_row_is_drawn_from_a_copy_of_its_own():
    copies = torch.arange(3.0)[:, None, None].expand(3, 5, 1) * 10 + torch.arange(5.0)[None, :, None]
    found = torch.cat([_drawn(copies, [4, 0, 2], np.random.default_rng(s)) for s in range(40)]).view(40, 3)
    assert torch.equal(found % 10, torch.tensor([[4.0, 0.0, 2.0]]).expand(40, 3))
    assert {float(v) for v in (found // 10).flatten()} == {0.0, 1.0, 2.0} and (found // 10 != found[:, :1] // 10).any()


def test_the_prompting_type_is_drawn_before_the_query():
    rng = np.random.default_rng(0)
    drawn = [_pick([np.array([0]), np.arange(1, 10)], rng) for _ in range(2000)]
    assert 0.45 < np.mean(np.array(drawn) == 0) < 0.55 and set(drawn) == set(range(10))


def test_augmented_copies_differ_and_plain_ones_are_one():
    images = list(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
    flat = lambda pictures: np.stack([p.reshape(-1) for p in pictures]).astype(np.float32)  # noqa: E731
    found = augmented(images, flat, mild, 3, seed=5)
    assert found.shape == (3, 4, 768) and not (found[0] == found[1]).all(1).any()
    assert np.array_equal(found[2, 1], mild(images[1], np.random.default_rng([5, 2, 1])).reshape(-1))
    assert np.array_equal(augmented(images, flat, None, 3)[0], flat(images))


@pytest.mark.parametrize("view, cuts", [("whole", (False, False)), ("crop query", (False, True)), ("crops", (True, True))])
def test_pair_features_cut_what_the_view_says(dataset, view, cuts):
    samples = dataset.samples["train"]
    found = pair_features(dataset, samples, lambda images: np.array([im.shape[:2] for im in images], np.float32), view)
    assert found["real"].shape == (1, 6, 2) and found["synthetic"].shape == (1, 12, 2)
    assert found["owner"].tolist() == np.repeat(np.arange(6), 2).tolist()
    for name, cut in zip(("real", "synthetic"), cuts):
        assert (found[name] == 64).all() != cut
    assert [s.medium != "photo" for s in samples] == found["kind"].astype(bool).tolist()


# ---- rows of the arena -----------------------------------------------------------------------------------------------
@pytest.fixture
def kit(dataset, tmp_path):
    """Tiny settings; the generator and the encoder that take long to load are small ones."""
    tiny = {"mappers": {"epochs": 2}, "copies": 2, "vae_grid": 2, "rendered": 3, "vit_scenes": 4, "vit": {
        "width": 12, "depth": 1, "heads": 2, "hidden": 8, "out": 4, "view": 16, "steps": 2, "batch": 4, "warmup": 1}}
    kit = Kit(dataset, "val", ROOT / "data", tmp_path / "work", {"abc_rows": tiny})
    boxes = {i.image_id: np.array([i.objects[0].box, (0.0, 0.0, 9.0, 9.0)]) for i in dataset.gallery["val"]}
    vars(kit).update(generator=tiny_pipeline(tmp_path), efficientnet=mean_colour,
                     proposals=lambda image_id, class_name: boxes[image_id])
    return kit


def test_the_rows_are_these():
    names = {entry.name for entry in abc_rows.ENTRIES}
    assert len(names) == len(abc_rows.ENTRIES) == 15
    assert {"AbC, vae", "AbC, efficientnet, R_Q crop", "class filter + unet", "class filter + AbC, vit"} < names
    assert {name for name in names if "rendered" in name} == {"class filter + AbC, efficientnet, rendered pairs"}
    assert not {"AbC, efficientnet", "class filter + efficientnet"} & names, "the main evaluation has these"
    assert not any(entry.per_query for entry in abc_rows.ENTRIES)
    assert all(("pairs" in entry.given) == ("AbC" in entry.name) for entry in abc_rows.ENTRIES)
    assert {entry.build.__module__ for entry in abc_rows.ENTRIES} == {"ard.baselines.abc_rows"}, "by it settings are found"


def poisoned(query, gallery):
    """The same question with everything wrong that a method must not read."""
    sample = replace(query.sample, exemplar_file="nowhere.png", exemplar_box=(0.0, 0.0, 1.0, 1.0), individual_id="?",
                     drawing="?", designer="?", concept_id="?")
    return Query(sample, query.image), Gallery([replace(i, objects=()) for i in gallery], gallery._load)


@pytest.mark.parametrize("entry", abc_rows.ENTRIES, ids=lambda entry: entry.name)
def test_every_row_answers_without_reading_the_truth(kit, dataset, entry):
    method, gallery = entry.build(kit), dataset.open_gallery("val")
    if "pairs" in entry.given:
        with pytest.raises(ValueError, match="before `fit`"):
            method.rank(dataset.query(dataset.samples["val"][0]), gallery)
        method.fit(kit.ad_train, kit.generator)
    else:
        assert not hasattr(method, "fit")
    for sample in dataset.samples["val"][:2]:
        answers = method.rank(dataset.query(sample), gallery)
        assert [a.image_id for a in answers] == [i.image_id for i in gallery]
        assert np.isfinite([a.score for a in answers]).all()
        assert all((a.box is not None) == entry.name.startswith("class filter") for a in answers)
        assert answers == method.rank(*poisoned(dataset.query(sample), gallery))


def test_a_killed_fit_goes_on_and_other_settings_start_anew(kit, dataset):
    entry = next(e for e in abc_rows.ENTRIES if e.name == "class filter + AbC, efficientnet")
    sample, gallery = dataset.query(dataset.samples["val"][0]), dataset.open_gallery("val")
    first = entry.build(kit)
    first.fit(kit.ad_train, None)
    files = {p.name: p.read_bytes() for p in (kit.work / "abc").iterdir()}
    assert {name.rsplit(".", 1)[1] for name in files} == {"npz", "safetensors"}
    next((kit.work / "abc").glob("*.safetensors")).unlink()  # killed after the features were encoded
    vars(kit)["efficientnet"] = lambda images: pytest.fail("encoded again") if len(images) > 12 else mean_colour(images)
    second = entry.build(kit)
    second.fit(kit.ad_train, None)
    assert {p.name: p.read_bytes() for p in (kit.work / "abc").iterdir()} == files
    assert first.rank(sample, gallery) == second.rank(sample, gallery)
    vars(kit)["efficientnet"] = mean_colour
    other = replace(kit, settings={"abc_rows": {**kit.settings["abc_rows"], "copies": 1}})
    vars(other).update(efficientnet=mean_colour, proposals=kit.proposals, content=kit.content)
    entry.build(other).fit(kit.ad_train, None)
    assert len(list((kit.work / "abc").iterdir())) == 4


def test_crops_have_a_regularisation_of_their_own_and_other_mappers_share_the_features(kit):
    """Encoded once, mapped for each setting; whole pictures and other encoders do not read it."""
    def fitted(view, name="efficientnet", **changes):
        asked = replace(kit, settings={"abc_rows": {**kit.settings["abc_rows"], **changes}})
        vars(asked)["content"] = kit.content
        return abc_rows.learned(asked, name, view, mean_colour, kit.ad_train)

    def same(a, b):
        return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))

    other = {"crop_regularisation": {"efficientnet": 9.0}}
    assert same(fitted("whole"), fitted("whole", **other)) and same(fitted("crops", "vae"), fitted("crops", "vae", **other))
    assert not same(fitted("crops"), fitted("crops", **other))
    assert len(list((kit.work / "abc").glob("*.npz"))) == 3, "one for each view and encoder"
    with pytest.raises(ConfigError, match="efficientnet"):
        fitted("crops", crop_regularisation={"efficientnett": 1.0})


def test_mapped_rows_differ_from_plain_ones_only_by_their_mappers(kit, dataset):
    """With mappers that do nothing, the row with AbC is the class filter's."""
    kit = replace(kit, settings={"abc_rows": {"mappers": {"mapper": "none"}, "augment": "none"}})
    vars(kit).update(efficientnet=mean_colour, proposals=lambda image_id, name: np.array([[0.0, 0.0, 30.0, 30.0]]))
    plain, mapped = abc_rows.filtered("efficientnet")(kit), abc_rows.filtered_abc("efficientnet")(kit)
    mapped.fit(kit.ad_train, None)
    assert isinstance(mapped, Learned)
    query, gallery = dataset.query(dataset.samples["val"][0]), dataset.open_gallery("val")
    for a, b in zip(plain.rank(query, gallery), mapped.rank(query, gallery), strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-6) and a.box == b.box


# ---- the study -------------------------------------------------------------------------------------------------------
SETTINGS = StudySettings(distractors=23, chunk=10, unseen=("dog",), test_templates=(3,), copies=2, top=12,
                         mappers=AbCConfig(epochs=3))


@pytest.fixture(scope="module")
def distractor():
    return base_scenes(World.load(ROOT / "data/world"), seed=4)


def test_the_study_agrees_with_brute_force(dataset, distractor):
    samples = dataset.samples["val"]
    rows = [row for found in abc_study(dataset, "val", {"colour": mean_colour}, distractor, SETTINGS)
            for row in summaries(samples, found, SETTINGS)]
    assert len(rows) == len(variants(SETTINGS.mappers)) * 4, "seen or not x (context, train) or (context, test): rendered photos"
    exemplars = dict.fromkeys(s.exemplar_file for s in samples)
    crowd = [unit(mean_colour([distractor(i)]))[0] for i in range(23)]
    for row in (r for r in rows if r["mapper"] == "none"):
        found = []
        for s in samples:
            group = ("unseen" if s.class_name == "dog" else "seen", "test" if s.template == 3 else "train")
            if group != (row["classes"], row["wording"]):
                continue
            asked = unit(mean_colour([dataset.pixels(s.query_file)]))[0]
            own = unit(mean_colour([dataset.pixels(s.exemplar_file)]))[0] @ asked
            others = [unit(mean_colour([dataset.pixels(f)]))[0] for f in exemplars if f != s.exemplar_file] + crowd
            found.append(1 + sum(o @ asked >= own for o in others))
        assert row["n_queries"] == len(found) > 0
        assert row["map"] == pytest.approx(np.mean([1 / r for r in found]), abs=1e-6), (row, found)
        assert row["recall_5"] == pytest.approx(np.mean(np.array(found) <= 5), abs=1e-6) and row["recall_100"] == 1
    assert sum(r["n_queries"] for r in rows if r["mapper"] == "MLP") == len(samples)
    assert all(0 < r["influence"] < 1 and r["tau"] > 0 for r in rows)


def test_mappers_of_the_study_never_see_what_is_held_out(dataset, distractor, monkeypatch):
    seen = []

    def noted(data, samples, *rest):
        seen.append({(s.split, s.class_name, s.template) for s in samples})
        return pair_features(data, samples, *rest)

    monkeypatch.setattr("ard.baselines.abc_study.pair_features", noted)
    list(abc_study(dataset, "val", {"colour": mean_colour}, distractor, SETTINGS))
    taught = set().union(*(part for part in seen if all(split == "train" for split, _, _ in part)))
    assert taught and not any(name == "dog" or template == 3 for _, name, template in taught)
    assert all(split in ("train", "val") for part in seen for split, _, _ in part)


def test_distractors_are_kept_chunk_by_chunk(distractor, tmp_path):
    drawn = []

    def noted(i):
        drawn.append(i)
        return distractor(i)

    whole = distractor_features("colour", mean_colour, noted, SETTINGS, tmp_path)
    assert drawn == list(range(23)) and whole.shape == (23, 6) and len(list(tmp_path.iterdir())) == 3
    sorted(tmp_path.iterdir())[1].unlink()
    assert np.array_equal(distractor_features("colour", mean_colour, noted, SETTINGS, tmp_path), whole)
    assert drawn[23:] == list(range(10, 20))
    assert np.array_equal(distractor_features("c", mean_colour, distractor, SETTINGS), whole), "the same without a folder"


def test_ranks_count_ties_against_the_exemplar():
    assert ranks(np.array([[1.0, 1.0, 0.0]]), np.array([0])).tolist() == [2]


def test_calibration_moves_influence_and_keeps_the_order():
    similarity = np.array([[0.9, 0.1, 0.3], [0.2, 0.8, 0.8]], np.float32)
    found = Found("colour", "none", similarity, np.array([0, 1]), 0.1)
    first, second = spread(found, (1, 2))
    hot, cold = (np.exp(similarity / tau) / np.exp(similarity / tau).sum(1, keepdims=True) for tau in (1.0, 0.1))
    assert first["before"] == pytest.approx((hot[0, 0] + hot[1, 1]) / 2, rel=1e-3)
    assert first["after"] == pytest.approx((cold[0, 0] + cold[1, 1]) / 2, rel=1e-3)
    assert second["after"] == pytest.approx((cold[0, 2] + cold[1, 2]) / 2, rel=1e-3)
    assert len(list(spread(found, range(1, 9)))) == 3, "no more places than images"
    assert [column for column, _ in strongest(found, 1, 3)] == [1, 2, 0], "of equal ones the first"
    assert sum(share for _, share in strongest(found, 0, 3)) == pytest.approx(1)
