"""A person's question, for the mini detector and the published one: sorted answers in the training pictures' own pixels."""

import shutil

import numpy as np
import pytest
import torch
import transformers.utils.hub as hub
from huggingface_hub import ModelCard, RepoUrl
from PIL import Image

from ard.chances import Chances
from ard.cli import load_attributor
from ard.detector.attribute import Attributor
from ard.detector.method import DetectorMethod
from ard.detector.processor import AttributionProcessor
from ard.detector.published import AttributionDetector
from ard.detector.tied import TiedGroundingDinoForObjectDetection, untied
from ard.geometry import GeometryError
from ard.images import ImageError
from ard.records import Dataset
from ard.together import Pool, log_odds, once, together
from tests.detector.conftest import COLOURS, square
from tests.detector.official import small_config
from tests.toy_attribution import ROOT

BOX = [4.0, 6.0, 40.0, 38.0]


@pytest.fixture
def gallery():
    rng = np.random.default_rng(3)
    return {name: np.asarray(Image.fromarray(square(rng, colour)[0]).resize(size))
            for (name, colour), size in zip(COLOURS.items(), ((64, 64), (128, 96), (50, 90), (64, 64)))}


@pytest.fixture(params=["mini", "published"])
def attributor(request, tiny):
    torch.manual_seed(0)
    if request.param == "mini":
        return Attributor(tiny, AttributionProcessor.mini(), batch=3)
    return Attributor(AttributionDetector(small_config()), AttributionProcessor(96, 160), batch=3)


def test_answers_are_sorted_and_in_the_pictures_own_pixels(attributor, gallery):
    answer = attributor.attribute(gallery["cat"], BOX, "cat", gallery, top_k=3)
    assert len(answer.found) == 3 and answer.ranked == 4 and not answer.skipped
    assert [a.score for a in answer.found] == sorted((a.score for a in answer.found), reverse=True)
    for one in answer.found:
        height, width = gallery[one.image_id].shape[:2]
        assert 0 <= one.box[0] < one.box[2] <= width and 0 <= one.box[1] < one.box[3] <= height


def test_a_long_picture_is_never_answered_by_its_margin():
    if not (ROOT / "data/models/ard/model.safetensors").is_file():
        pytest.skip("the shipped detector is not here")
    attributor, dataset = load_attributor(ROOT / "data/models/ard"), Dataset.load(ROOT / "data/mini-coco")
    long = attributor.index({im.image_id: np.asarray(Image.fromarray(dataset.pixels(im.file)[24:40]).resize((320, 80)))
                             for im in dataset.gallery["val"]})
    for sample in dataset.samples["val"][::60]:
        found = attributor.attribute(dataset.query(sample).image, sample.query_box, sample.class_name, long, top_k=len(long)).found
        assert all(0 <= a.box[0] < a.box[2] <= 320 and 0 <= a.box[1] < a.box[3] <= 80 for a in found)


def test_what_is_small_in_a_large_picture_is_seen_in_windows(attributor, gallery):
    closer = Attributor(attributor.detector, attributor.processor, 3, zoom=2)
    plain, index = attributor.index(gallery), closer.index(gallery)
    assert len(plain) == len(index) == 4
    one, two = (attributor.attribute(gallery["cat"], BOX, "cat", of, top_k=4) for of in (plain, index))
    assert one.ranked == two.ranked == len(two.found) == 4 and sorted(a.image_id for a in two.found) == sorted(gallery)
    before = {a.image_id: a.score for a in one.found}
    assert all(a.score >= before[a.image_id] - 1e-4 for a in two.found)  # the whole picture is one of its windows
    assert any(a.score > before[a.image_id] + 1e-4 for a in two.found)
    for a in two.found:
        height, width = gallery[a.image_id].shape[:2]
        assert 0 <= a.box[0] < a.box[2] <= width and 0 <= a.box[1] < a.box[3] <= height
    with pytest.raises(ValueError, match="zoom"):
        Attributor(attributor.detector, attributor.processor, zoom=0.5)


def test_boxes_grow_with_the_picture(gallery, tiny):
    large = {name: picture.repeat(4, 0).repeat(4, 1) for name, picture in gallery.items()}
    attributor = Attributor(tiny, AttributionProcessor.mini())
    small, grown = (attributor.attribute(gallery["cat"], BOX, "cat", shown, top_k=4).found for shown in (gallery, large))
    boxes = {a.image_id: np.array(a.box) for a in small}
    for a in grown:
        assert np.allclose(np.array(a.box) / 4, boxes[a.image_id], atol=1.5), (a.image_id, a.box, boxes[a.image_id])


def test_the_window_that_is_strongest_after_a_second_look_answers(gallery, tiny, monkeypatch):
    looked = {}

    class Look:
        def __init__(self, closeup):
            pass

        def __call__(self, picture, box, answers, pictures):
            looked.update(zip([a.image_id for a in answers], zip(answers, pictures), strict=True))
            return np.array([20.0 * a.image_id.startswith("3:") for a in answers])

    monkeypatch.setattr("ard.detector.attribute.SecondLook", Look)
    attributor = Attributor(tiny, AttributionProcessor.mini(), batch=7, closeup=object(), zoom=2)
    index = attributor.index(gallery)
    answer = attributor.attribute(gallery["cat"], BOX, "cat", index, top_k=4)
    seen = {name: picture for names, pictures, _ in index.batches for name, picture in zip(names, pictures)}
    assert looked.keys() == seen.keys() and all(np.array_equal(picture, seen[name].image) for name, (_, picture) in looked.items())
    for a in answer.found:
        there = looked[f"3:{a.image_id}"][0]
        assert log_odds([a.score]) == pytest.approx(log_odds([there.score]) + 20, abs=1e-3)
        assert np.allclose(a.box, seen[there.image_id].back([there.box])[0])


def test_a_name_may_hold_anything(gallery, tiny):
    names = ["1:2:a", ":", "0:", "a b#2"]
    attributor = Attributor(tiny, AttributionProcessor.mini(), zoom=2)
    found = attributor.attribute(gallery["cat"], BOX, "cat", dict(zip(names, gallery.values())), top_k=4).found
    assert sorted(a.image_id for a in found) == sorted(names)


def test_a_picture_in_windows_has_one_chance(gallery, tiny):
    tiny.config.calibration = (1.0, 0.5, 0.3, 0.2)
    attributor = Attributor(tiny, AttributionProcessor.mini(), zoom=2)
    for pictures in ([(gallery["cat"], BOX)], [(gallery["cat"], BOX), (gallery["dog"], BOX)]):
        answer = attributor.attribute_together(pictures, "cat", gallery, top_k=4)
        assert len(answer.chances) == 4 and sum(answer.chances) == pytest.approx(answer.sure) and 0 < answer.sure < 1


def test_a_gallery_is_named_pictures_or_a_list_each_once(attributor, gallery, tmp_path):
    file = tmp_path / "cat.png"
    Image.fromarray(gallery["cat"]).save(file)
    for folder in (tmp_path, str(tmp_path)):
        with pytest.raises(TypeError, match="one path"):
            attributor.index(folder)
    index = attributor.index([file, file, str(file)])
    assert len(index) == 1 and [s.reason for s in index.skipped] == ["listed twice"] * 2


def test_pictures_go_to_where_the_detector_is(gallery):
    elsewhere = Attributor(AttributionDetector(small_config()).to("meta"), AttributionProcessor(96, 160))
    ((_, _, maps),) = elsewhere.index({"cat": gallery["cat"]}).batches
    assert maps.levels[0].device.type == maps.masks[0].device.type == "meta"


def test_a_gallery_that_was_encoded_before_gives_the_same_bits(attributor, gallery):
    index = attributor.index(gallery)
    assert len(index) == 4
    assert attributor.attribute(gallery["dog"], BOX, "dog", index) == attributor.attribute(gallery["dog"], BOX, "dog", gallery)


def test_a_picture_alone_is_scored_as_in_a_batch(attributor, gallery):
    whole = {a.image_id: a for a in attributor.attribute(gallery["cat"], BOX, "cat", gallery, top_k=9).found}
    for name, picture in gallery.items():
        alone = attributor.attribute(gallery["cat"], BOX, "cat", {name: picture}).found[0]
        assert alone.score == pytest.approx(whole[name].score, abs=1e-4)


def test_what_cannot_be_read_is_listed_and_the_others_are_ranked(attributor, gallery, tmp_path):
    for name, picture in gallery.items():
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "cat.png").read_bytes()[:60])
    files = [*sorted(tmp_path.glob("*.png")), tmp_path / "gone.png"]
    answer = attributor.attribute(gallery["cat"], BOX, None, files)
    assert answer.ranked == 4 and {s.image_id for s in answer.skipped} == {str(tmp_path / "torn.png"), str(tmp_path / "gone.png")}
    assert answer.ranked + len(answer.skipped) == len(files) and "image not found" in answer.skipped[-1].reason


def test_bad_questions_are_refused(attributor, gallery):
    with pytest.raises(GeometryError, match="looks like shares"):
        attributor.attribute(gallery["cat"], [0.1, 0.1, 0.5, 0.5], "cat", gallery)
    with pytest.raises(ImageError, match="query: expected"):
        attributor.attribute(np.zeros((4, 4)), BOX, "cat", gallery)
    with pytest.raises(ValueError, match="empty text"):
        attributor.attribute(gallery["cat"], BOX, "  ", gallery)
    with pytest.raises(ValueError, match="top_k"):
        attributor.attribute(gallery["cat"], BOX, "cat", gallery, top_k=0)
    with pytest.raises(ValueError, match="prior: .* found 1"):
        attributor.attribute(gallery["cat"], BOX, "cat", gallery, prior=1)


def test_a_caption_that_does_not_fit_is_refused():
    torch.manual_seed(0)
    detector = AttributionDetector(small_config(max_text_len=8)).eval()
    with pytest.raises(ValueError, match="tokens; at most 8 fit"):
        detector.encode_query(None, None, ["a very long name of a class indeed"])
    with pytest.raises(ValueError, match="end a phrase"):
        detector.encode_query(None, None, ["cat. dog"])


def test_it_asks_as_the_benchmark_does(tiny, tmp_path):
    """The mini world's 64 px pictures go through unchanged: `Attributor` and `DetectorMethod` agree bit by bit."""
    from tests.toy_attribution import toy_dataset

    dataset = toy_dataset(tmp_path)
    sample, gallery = dataset.samples["val"][0], dataset.open_gallery("val")
    ranked = DetectorMethod(tiny).rank(dataset.query(sample), gallery)
    pictures = {image.image_id: gallery.pixels(image) for image in gallery}
    attributor = Attributor(tiny, AttributionProcessor.mini(), batch=len(pictures))
    answer = attributor.attribute(dataset.query(sample).image, sample.query_box, sample.class_name, pictures, top_k=len(pictures))
    assert {a.image_id: a.score for a in answer.found} == {a.image_id: a.score for a in ranked}


def test_a_query_backbone_of_its_own_sees_the_query_alone(gallery):
    torch.manual_seed(0)
    detector = AttributionDetector(small_config(shared_vision=False)).eval()
    attributor = Attributor(detector, AttributionProcessor(96, 160))
    ready = attributor.processor(gallery["cat"], [BOX])
    before, index = attributor._asked(ready, "cat"), attributor.index({"cat": gallery["cat"]})
    with torch.no_grad():
        for parameter in detector.query_backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    after, again = attributor._asked(ready, "cat"), attributor.index({"cat": gallery["cat"]})
    assert not torch.equal(before.exemplar, after.exemplar) and torch.equal(before.text, after.text)
    assert torch.equal(index.batches[0][2].levels[0], again.batches[0][2].levels[0])


def test_an_answer_says_how_sure_it_is_where_that_was_measured(attributor, gallery, tmp_path):
    unasked = attributor.attribute(gallery["cat"], BOX, "cat", gallery)
    assert unasked.sure is None and unasked.chances == ()
    attributor.detector.config.calibration = [2.0, -0.5]
    attributor.detector.save_pretrained(tmp_path)
    kept = Attributor(type(attributor.detector).from_pretrained(tmp_path, local_files_only=True), attributor.processor, batch=3)
    whole, some = (kept.attribute(gallery["cat"], BOX, "cat", gallery, top_k, prior=0.2) for top_k in (len(gallery), 2))
    scores = np.clip([a.score for a in whole.found], 1e-6, 1 - 1e-6)
    odds = np.exp(-0.5) * (scores / (1 - scores)) ** 2 / len(gallery) * 0.2 / 0.8
    assert whole.chances == pytest.approx(odds / (1 + odds.sum()), abs=1e-6)
    assert sum(whole.chances) == pytest.approx(whole.sure) == pytest.approx(some.sure)
    assert some.chances == whole.chances[:2], "chances of those that are told do not depend on how many are"
    nothing = kept.attribute(gallery["cat"], BOX, "cat", {})
    assert nothing.sure is None and nothing.chances == ()


def test_which_is_read_by_words_and_likeness_and_whether_by_the_exemplars_own_token(tiny, gallery):
    tiny.add_likeness()
    tiny.config.score_rule, tiny.config.calibration = "exemplar", [2.0, -0.5]
    tied = TiedGroundingDinoForObjectDetection.of(tiny, likeness_weight=1.5, pooling=2.0)
    plain, both = (Attributor(model, AttributionProcessor.mini()).attribute(gallery["cat"], BOX, "cat", gallery) for model in (tiny, tied))
    own = [{a.image_id: chance for a, chance in zip(answer.found, answer.chances)} for answer in (plain, both)]
    assert both.sure == pytest.approx(plain.sure, abs=1e-6) and own[1] == pytest.approx(own[0], abs=1e-6)
    assert [a.score for a in both.found] != pytest.approx([a.score for a in plain.found], abs=1e-3)


def test_chances_are_of_both_readings_of_each_picture(tiny, gallery):
    tiny.add_likeness()
    tiny.config.score_rule, tiny.config.calibration = "exemplar", [2.0, -0.5, 0.7, 0.4]
    tied = TiedGroundingDinoForObjectDetection.of(tiny, likeness_weight=1.5, pooling=2.0)
    plain, both = (Attributor(model, AttributionProcessor.mini()).attribute(gallery["cat"], BOX, "cat", gallery) for model in (tiny, tied))
    own = {a.image_id: a.score for a in plain.found}
    by_hand = Chances(2.0, -0.5, 0.7, 0.4)([own[a.image_id] for a in both.found], [a.score for a in both.found])
    assert both.chances == pytest.approx(by_hand, abs=1e-5) and both.sure == pytest.approx(by_hand.sum(), abs=1e-5)


def test_all_regions_answer_also_where_looks_alone_are_asked_by(tiny, gallery):
    tiny.add_likeness()
    strongest, pooled = (Attributor(TiedGroundingDinoForObjectDetection.of(tiny, 1.5, pooling), AttributionProcessor.mini())
                         .attribute(gallery["cat"], BOX, None, gallery) for pooling in (0.0, 2.0))
    assert strongest.ranked == pooled.ranked == len(pooled.found) and strongest.found != pooled.found


class FolderHub:
    """A model hub that is a folder: what is committed to a repository is copied to where it can be loaded from."""

    def __init__(self, root):
        self.root = root

    def create_repo(self, repo_id, **_):
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def create_commit(self, repo_id, operations, **_):
        for one in operations:
            file = self.root / repo_id / one.path_in_repo
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(one.path_or_fileobj, file)


def test_a_detector_that_was_pushed_to_a_hub_answers_as_before(attributor, gallery, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "hf_api", lambda: FolderHub(tmp_path))
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: ModelCard("# a card"))
    attributor.detector.push_to_hub("someone/detector")
    pulled = type(attributor.detector).from_pretrained(tmp_path / "someone/detector", local_files_only=True)
    again = Attributor(pulled, attributor.processor, batch=3)
    before, after = (a.attribute(gallery["cat"], BOX, "cat", gallery, top_k=4).found for a in (attributor, again))
    assert [a.image_id for a in before] == [a.image_id for a in after]
    assert [a.score for a in before] == pytest.approx([a.score for a in after], abs=1e-4)
    assert pulled.state_dict().keys() == attributor.detector.state_dict().keys()


def test_several_pictures_are_asked_about_together(attributor, gallery):
    index, mine = attributor.index(gallery), [(gallery["cat"], BOX), (gallery["bear"], [2.0, 2.0, 50.0, 60.0])]
    alone = [{a.image_id: a for a in attributor.attribute(*one, "cat", index).found} for one in mine]
    answer = attributor.attribute_together(mine, "cat", index)
    assert answer.ranked == 4 and answer.sure is None and answer.chances == ()
    for found in answer.found:
        scores = np.array([of[found.image_id].score for of in alone])
        odds = np.sqrt(np.prod(scores / (1 - scores)))
        assert found.score == pytest.approx(odds / (1 + odds), rel=1e-4) and found.box in [of[found.image_id].box for of in alone]
    assert [a.score for a in answer.found] == sorted((a.score for a in answer.found), reverse=True)
    assert attributor.attribute_together(mine[:1], "cat", index) == attributor.attribute(*mine[0], "cat", index)
    with pytest.raises(ValueError, match="at least one"):
        attributor.attribute_together([], "cat", index)


def test_what_the_words_say_counts_once_where_they_are_kept_apart(with_likeness, gallery):
    tied = TiedGroundingDinoForObjectDetection.of(with_likeness, likeness_weight=1.5, pooling=2.0)
    attributor = Attributor(tied, AttributionProcessor.mini(), batch=3)
    mine, index = [(gallery["cat"], BOX), (gallery["bear"], [2.0, 2.0, 50.0, 60.0])], attributor.index(gallery)
    no_likeness = TiedGroundingDinoForObjectDetection.of(tied, likeness_weight=0.0, pooling=2.0)
    words = Attributor(no_likeness, AttributionProcessor.mini(), batch=3)
    said, told = ([list(a.attribute(*one, "cat", index).found) for one in mine] for a in (attributor, words))
    found = {a.image_id: a.score for a in attributor.attribute_together(mine, "cat", index).found}
    assert found == pytest.approx({a.image_id: a.score for a in together(said, words=told)}, rel=1e-4)
    assert found != pytest.approx({a.image_id: a.score for a in together(said)}, rel=1e-2)
    tied.config.calibration = [0.9, 0.5, 0.7, 0.4]
    answer = Attributor(tied, AttributionProcessor.mini(), batch=3).attribute_together(mine, "cat", index, top_k=len(gallery))
    judged = [list(Attributor(untied(tied), AttributionProcessor.mini(), batch=3).attribute(*one, "cat", index).found) for one in mine]
    own, ranked, of_words = (np.array([[{a.image_id: a.score for a in of}[a.image_id] for a in answer.found] for of in some])
                             for some in (judged, said, told))
    each, sure = Pool()(Chances(*tied.config.calibration)(own, once(ranked, of_words, 2)))
    assert np.allclose(answer.chances, each, rtol=1e-3) and answer.sure == pytest.approx(sure, rel=1e-3)
    nameless = {a.image_id: a.score for a in attributor.attribute_together(mine, None, index).found}
    alike = [list(attributor.attribute(*one, None, index).found) for one in mine]
    assert nameless == pytest.approx({a.image_id: a.score for a in together(alike)}, rel=1e-4), "no words, nothing to count once"


def test_chances_of_pictures_asked_about_together_are_pooled(tiny, gallery):
    tiny.config.calibration = [0.9, 0.5, 0.7, 0.4]
    attributor = Attributor(tiny, AttributionProcessor.mini(), batch=3)
    mine, whole = [(gallery[name], BOX) for name in ("cat", "dog")], {"top_k": len(gallery)}
    answer = attributor.attribute_together(mine, "cat", gallery, prior=0.2, **whole)
    alone = [attributor.attribute(*one, "cat", gallery, **whole) for one in mine]
    said = [dict(zip((a.image_id for a in of.found), of.chances)) for of in alone]
    each, sure = Pool()([[of[a.image_id] for a in answer.found] for of in said], prior=0.2)
    assert np.allclose(answer.chances, each, rtol=1e-4) and answer.sure == pytest.approx(sure, rel=1e-4) == pytest.approx(sum(answer.chances))


def test_equal_pictures_are_told_by_name_whatever_their_order(tiny, gallery):
    attributor = Attributor(tiny, AttributionProcessor.mini(), batch=4)
    for names in ("abcd", "dcba", "bdac"):
        answer = attributor.attribute(gallery["cat"], BOX, "cat", {name: gallery["cat"] for name in names})
        assert len({a.score for a in answer.found}) == 1 and [a.image_id for a in answer.found] == list("abcd")
