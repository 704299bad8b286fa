"""Close-ups: what they show is where they say, individuals are told apart in them, and what they add is added to log-odds."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import logit

from ard.baselines import whitened
from ard.baselines.closeups import COSINE, LOGIT, CloseUpMethod, all_raised, beside_cosines, looks, whitened_regions
from ard.baselines.kit import Kit
from ard.chances import Chances
from ard.detector import closeup
from ard.detector.attribute import Attributor
from ard.detector.closeup import (
    CloseUp, CloseUpSettings, Regions, SecondLook, closeups, discriminant, fit_closeup, nearest_of_class, raised, whole_pixels)
from ard.detector.features import REGION
from ard.detector.method import DetectorMethod
from ard.detector.processor import AttributionProcessor
from ard.detector.published import AttributionDetector
from ard.detector.readings import JUDGED
from ard.detector.tied import TiedGroundingDinoForObjectDetection
from ard.files import FileError
from ard.geometry import GeometryError, box_iou
from ard.records import Attribution
from tests.detector.official import small_config
from tests.toy_attribution import toy_dataset

BOX = (10.0, 20.0, 30.0, 44.0)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def random_look():
    rng = torch.Generator().manual_seed(0)
    return CloseUp(torch.randn(REGION, 8, generator=rng), torch.randn(8, generator=rng), 9.0, -2.0, CloseUpSettings(width=8))


# ---- where it looks --------------------------------------------------------------------------------------------------
def painted(box, size=(64, 64)):
    """A black picture (1, H, W, 3) with a white box in whole pixels."""
    picture = np.zeros((1, *size, 3), np.uint8)
    x0, y0, x1, y1 = map(int, box)
    picture[:, y0:y1, x0:x1] = 255
    return picture


@pytest.mark.parametrize("box, size", [(BOX, (64, 64)), ((0, 0, 12, 30), (64, 64)), ((40, 50, 64, 64), (64, 64)), ((5, 9, 70, 40), (48, 96))])
def test_what_is_painted_in_the_box_lies_where_the_box_moves_to(box, size):
    seen, there = closeups(painted(box, size), [box], 1.3)
    rows, columns = np.nonzero(seen[0, :, :, 0] > 127)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    expected = there[0].tolist()  # where the box touches the picture's border, what is painted goes on beyond it
    for i, (edge, limit) in enumerate(zip(box, (0, 0, size[1], size[0]))):
        assert found[i] == pytest.approx(expected[i], abs=1.01) or edge == limit
    longer = max(box[2] - box[0], box[3] - box[1])
    assert (there[0, 2:] - there[0, :2]).tolist() == pytest.approx([64 / 1.3 * (box[i + 2] - box[i]) / longer for i in (0, 1)], abs=1e-3)


def test_a_mirrored_picture_gives_the_mirrored_close_up():
    picture = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)
    seen, there = closeups(picture, [BOX], 1.5)
    mirrored, moved = closeups(picture[:, :, ::-1], [(64 - BOX[2], BOX[1], 64 - BOX[0], BOX[3])], 1.5)
    assert np.abs(mirrored[:, :, ::-1].astype(int) - seen).max() <= 1
    assert torch.allclose(moved, torch.stack([64 - there[:, 2], there[:, 1], 64 - there[:, 0], there[:, 3]], 1), atol=1e-3)


def test_the_whole_of_a_square_picture_is_the_picture():
    picture = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    seen, there = closeups(picture, [(0, 0, 64, 64)] * 2, 1.0)
    assert np.array_equal(seen, picture) and there.tolist() == [[0, 0, 64, 64]] * 2


@pytest.mark.parametrize("box, margin, error", [((4, 4, 4, 9), 1.3, GeometryError), ((-1, 0, 9, 9), 1.3, GeometryError),
                                                ((0, 0, 65, 9), 1.3, GeometryError), (BOX, 0.9, ValueError)])
def test_what_cannot_be_looked_at_is_refused(box, margin, error):
    with pytest.raises(error):
        closeups(painted(BOX), [box], margin)


@pytest.mark.parametrize("box", [(-3.2, 5.0, 20.4, 70.0), (63.7, 63.9, 64.0, 64.0), (0.0, 0.0, 0.3, 0.2), (12.4, 12.4, 12.6, 40.0), BOX])
def test_whole_pixels_lie_in_the_picture_and_are_never_thinner_than_two(box):
    x0, y0, x1, y1 = whole_pixels(box, (64, 64, 3))
    assert 0 <= x0 and x0 + 2 <= x1 <= 64 and 0 <= y0 and y0 + 2 <= y1 <= 64
    if box == BOX:
        assert (x0, y0, x1, y1) == BOX


# ---- what it is fitted to --------------------------------------------------------------------------------------------
def test_individuals_of_a_class_are_told_apart_in_few_directions():
    """Of 40 directions ten are loud and say nothing, ten say the class, and six who it is."""
    rng = torch.Generator().manual_seed(0)
    classes = np.repeat(["cat", "dog", "cow"], 20)
    kind = {name: 6 * torch.randn(10, generator=rng) for name in ("cat", "dog", "cow")}
    who = torch.randn(60, 6, generator=rng)

    def seen(owners):
        loud, quiet = 8 * torch.randn(len(owners), 10, generator=rng), 0.1 * torch.randn(len(owners), 14, generator=rng)
        own = who[owners] + 0.2 * torch.randn(len(owners), 6, generator=rng)
        return torch.cat([loud, torch.stack([kind[classes[i]] for i in owners]), own, quiet], 1)

    def right(mapped):
        fresh, photos = (torch.nn.functional.normalize(seen(np.arange(60)) @ mapped, dim=-1) for _ in range(2))
        near = torch.where(torch.from_numpy(classes[:, None] == classes), fresh @ photos.T, -9.0)
        return (near.argmax(1) == torch.arange(60)).float().mean()

    owners = np.repeat(np.arange(60), 5)
    found = discriminant(seen(owners), owners, classes, 0.01, 6)
    assert found.shape == (40, 6) and right(torch.eye(40)) < 0.3 < 0.9 < right(found)


def test_classes_of_one_individual_teach_nothing():
    with pytest.raises(ValueError, match="nobody to tell it from"):
        discriminant(torch.randn(6, 5), np.repeat([0, 1], 3), np.array(["cat", "dog"]), 1.0, 2)


def test_what_is_fitted_depends_on_its_split_alone(toy):
    seen = Regions.of(toy, "train", 1.3)
    blind = Regions.of(replace(toy, samples={"train": toy.samples["train"]}, gallery={"train": toy.gallery["train"]}), "train", 1.3)
    fitted, again = (fit_closeup(regions, CloseUpSettings(width=3)) for regions in (seen, blind))
    assert torch.equal(fitted.project, again.project) and (fitted.slope, fitted.offset) == (again.slope, again.offset)


def test_who_is_in_a_picture_is_seen_asked_about_or_not(toy):
    known = toy.gallery["val"]
    asked = tuple(s for s in toy.samples["val"] if s.exemplar_file != known[0].file)
    fewer, all_ = (Regions.of(replace(toy, samples={"val": of}), "val", 1.3) for of in (asked, toy.samples["val"]))
    assert torch.allclose(fewer.photos, all_.photos) and list(fewer.classes) == [im.objects[0].class_name for im in known]
    assert [known[i].file for i in fewer.owners] == [s.exemplar_file for s in asked] and len(all_.drawn) > len(fewer.drawn)


def test_regions_of_two_datasets_are_joined_without_mixing_their_owners(toy):
    train, val = (Regions.of(toy, split, 1.3) for split in ("train", "val"))
    both = Regions.joined([train, val])
    assert np.array_equal(both.owners[len(train.drawn):], val.owners + len(train.photos)) and len(both.drawn) == len(both.owners)
    assert torch.equal(both.photos[both.owners[-1]], val.photos[val.owners[-1]]) and both.classes[both.owners[-1]] == val.classes[val.owners[-1]]
    assert fit_closeup(both, CloseUpSettings(width=3)).project.shape == (REGION, 3)


def test_the_nearest_of_the_class_is_counted_by_hand(toy, random_look):
    regions = Regions.of(toy, "val", 1.3)
    right = nearest_of_class(random_look, regions)
    photos, drawn = random_look.of_regions(regions.photos), random_look.of_regions(regions.drawn)
    for i, owner in enumerate(regions.owners):
        rivals = [j for j, name in enumerate(regions.classes) if name == regions.classes[owner]]
        assert right[i] == (max(rivals, key=lambda j: float(drawn[i] @ photos[j])) == owner)


def test_what_is_kept_is_read_back_with_its_operating_point(random_look, tmp_path):
    random_look.save(tmp_path / "look")
    bare = CloseUp.load(tmp_path / "look")
    assert torch.equal(bare.project, random_look.project.half().float()) and torch.allclose(bare.centre, random_look.centre)
    assert (bare.slope, bare.offset, bare.settings, bare.weight, bare.calibration) == (9.0, -2.0, random_look.settings, 1.0, ())
    replace(random_look, weight=0.5, calibration=(1.0, 2.0, 0.5, 0.25)).save_operating_point(tmp_path / "look")
    again = CloseUp.load(tmp_path / "look")
    assert (again.weight, again.calibration, again.slope) == (0.5, (1.0, 2.0, 0.5, 0.25), 9.0)


def test_a_folder_that_holds_something_else_is_named(random_look, tmp_path):
    with pytest.raises(FileError, match="nothing-here"):
        CloseUp.load(tmp_path / "nothing-here")
    replace(random_look, settings=CloseUpSettings(width=9)).save(tmp_path)
    with pytest.raises(FileError, match="expected a map of 1008 to 9"):
        CloseUp.load(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match=f"{tmp_path.name}: no close-up's folder"):
        CloseUp.load(tmp_path)


# ---- what it adds ----------------------------------------------------------------------------------------------------
def test_logits_are_added_to_log_odds_and_boxes_stay():
    answers = [Attribution("a", BOX, 0.2), Attribution("b", BOX, 1.0), Attribution("c", BOX, 0.0)]
    found = raised(answers, np.array([1.5, -1.0, 0.0]))
    assert logit(found[0].score) == pytest.approx(logit(0.2) + 1.5) and [a.box for a in found] == [BOX] * 3
    assert 0 < found[2].score < found[0].score < found[1].score < 1


def test_a_region_looks_most_like_itself_and_weight_is_a_factor(random_look):
    pictures = np.random.default_rng(1).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    answers = [Attribution(str(i), BOX, 0.5) for i in range(4)]
    told = SecondLook(random_look)(pictures[2], BOX, answers, list(pictures))
    doubled = replace(random_look, weight=2 * random_look.weight)
    assert told.argmax() == 2 and told[2] == pytest.approx(random_look.weight * (9.0 - 2.0), abs=1e-3)
    assert np.allclose(SecondLook(doubled)(pictures[2], BOX, answers, list(pictures)), 2 * told, atol=1e-5)


def test_vectors_are_kept_by_image_and_box(random_look, monkeypatch):
    asked = []
    plain = closeup.region_closeups
    monkeypatch.setattr(closeup, "region_closeups", lambda pictures, *rest: asked.append(len(pictures)) or plain(pictures, *rest))
    pictures, look = np.random.default_rng(2).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8), SecondLook(random_look)
    answers = [Attribution(str(i), BOX, 0.5) for i in range(3)]
    first = look(pictures[0], BOX, answers, list(pictures))
    nearly = [replace(a, box=tuple(v + 0.2 for v in BOX)) for a in answers]
    assert np.array_equal(look(pictures[0], BOX, nearly, list(pictures)), first) and asked == [3, 1, 1]
    look(pictures[0], BOX, [replace(answers[0], box=(0, 0, 9, 9)), *answers[1:]], list(pictures))
    assert asked == [3, 1, 1, 1, 1]


def test_the_method_is_the_detector_raised_and_the_person_is_told_the_same(toy, tiny, random_look):
    sample, gallery = toy.samples["val"][0], toy.open_gallery("val")
    query, plain, method = toy.query(sample), DetectorMethod(tiny), CloseUpMethod(DetectorMethod(tiny), random_look)
    ranked = plain.rank(query, gallery)
    answers = {sample.sample_id: ranked}
    added = looks(random_look, answers, toy, "val")
    assert method.rank(query, gallery) == all_raised(answers, added)[sample.sample_id] == raised(ranked, added[sample.sample_id])
    pictures = {image.image_id: gallery.pixels(image) for image in gallery}
    attributor = Attributor(tiny, AttributionProcessor.mini(), len(pictures), random_look)
    answer = attributor.attribute(query.image, sample.query_box, sample.class_name, pictures, top_k=len(pictures))
    told = {a.image_id: a for a in answer.found}
    assert {a.image_id: pytest.approx(a.score, abs=1e-6) for a in method.rank(query, gallery)} == {name: a.score for name, a in told.items()}
    for one in ranked:
        assert box_iou(one.box, told[one.image_id].box)[0, 0] == pytest.approx(1)


def test_both_readings_are_raised_before_chances_are_said(toy, tiny, random_look):
    sample, gallery = toy.samples["val"][0], toy.open_gallery("val")
    query, tied, look = toy.query(sample), TiedGroundingDinoForObjectDetection.of(tiny, 1.5), replace(random_look, calibration=(0.9, 0.5, 0.7, 0.4))
    tied.config.calibration = [9.0, 9.0, 9.0, 9.0]  # its own say nothing of answers that were looked at twice
    rows = DetectorMethod(tied).read(query, gallery)
    assert [a.box for a in rows["ARD"]] != [a.box for a in rows[f"ARD{JUDGED}"]], "the look is at the first"
    added = looks(look, {sample.sample_id: rows["ARD"]}, toy, "val")[sample.sample_id]
    ranked, judged = (np.array([a.score for a in raised(rows[name], added)]) for name in ("ARD", f"ARD{JUDGED}"))
    pictures = {image.image_id: gallery.pixels(image) for image in gallery}
    answer = Attributor(tied, AttributionProcessor.mini(), len(pictures), look).attribute(
        query.image, sample.query_box, sample.class_name, pictures, top_k=len(pictures))
    expected = dict(zip(pictures, Chances(*look.calibration)(judged, ranked)))
    assert not np.allclose(ranked, judged) and {a.image_id: c for a, c in zip(answer.found, answer.chances)} == pytest.approx(expected, abs=1e-5)
    assert answer.sure == pytest.approx(sum(expected.values()), abs=1e-5)


def test_another_gallery_of_the_same_names_is_looked_at_anew(toy, tiny, random_look):
    query, method = toy.query(toy.samples["val"][0]), CloseUpMethod(DetectorMethod(tiny), random_look)
    first, other = toy.open_gallery("val"), toy.open_gallery("val")
    before = method.rank(query, first)
    other.pixels = lambda image: 255 - first.pixels(image)
    again = CloseUpMethod(DetectorMethod(tiny), random_look)
    assert method.rank(query, other) == again.rank(query, other) != before


def test_pictures_that_keep_their_shape_have_no_close_ups(random_look):
    with pytest.raises(ValueError, match="squares"):
        Attributor(AttributionDetector(small_config()), AttributionProcessor(96, 160), closeup=random_look)


def test_a_rival_keeps_its_order_of_images_and_those_without_a_box(toy, random_look):
    query, gallery = toy.query(toy.samples["val"][0]), toy.open_gallery("val")
    answers = [Attribution(im.image_id, BOX if i else None, 0.1 * i if i else float("-inf")) for i, im in enumerate(gallery)]
    rival = SimpleNamespace(rank=lambda query, gallery: answers)
    found = CloseUpMethod(rival, random_look, beside_cosines).rank(query, gallery)
    boxed, pictures = answers[1:], [gallery.pixels(im) for im in gallery][1:]
    added = SecondLook(random_look)(query.image, query.sample.query_box, boxed, pictures)
    assert found[0] == answers[0] and [a.image_id for a in found] == [a.image_id for a in answers]
    assert [a.score for a in found[1:]] == pytest.approx([COSINE * a.score + one for a, one in zip(boxed, added)])
    nothing = SimpleNamespace(rank=lambda query, gallery: [Attribution(im.image_id, None, float("-inf")) for im in gallery])
    assert all(a.box is None for a in CloseUpMethod(nothing, random_look, beside_cosines).rank(query, gallery))


def test_the_rival_s_second_look_has_settings_of_its_own(toy, random_look, tmp_path, monkeypatch):
    random_look.save(tmp_path / "models/closeup")
    monkeypatch.setattr(whitened, "build", lambda kit: kit.settings.get("whitened", {}).get("threshold"))
    for told, wanted in (({}, None), ({"closeups": {"whitened": {"threshold": 0.3}}}, 0.3)):  # none that its fingerprint does not tell
        kit = Kit(toy, data=tmp_path, settings={"whitened": {"threshold": 0.1}, **told})
        assert whitened_regions(kit).method == wanted
    replace(random_look, weight=3.0).save_operating_point(tmp_path / "models/closeup")  # ARD's
    assert whitened_regions(kit).look.closeup.weight == LOGIT
