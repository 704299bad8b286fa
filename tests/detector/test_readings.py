"""One pass tells what three detectors would: as it ranks, as it was trained, and by its words alone."""

import pytest
import torch

from ard.detector.method import DetectorMethod
from ard.detector.prompts import EXEMPLAR, Phrase, build_prompt
from ard.detector.readings import JUDGED, WORDS, Readings, even_parts, read
from ard.detector.score import BATCH, rank_variants
from ard.detector.tied import TiedGroundingDinoForObjectDetection, untied
from tests.toy_attribution import toy_dataset

NAMES = list("abcdef")


def tied(model, pooling, likeness_weight=1.5):
    return TiedGroundingDinoForObjectDetection.of(model, likeness_weight=likeness_weight, pooling=pooling)


@pytest.fixture
def asked(phase_data):
    return build_prompt([[Phrase("cat", phase_data.queries[0, 0].float())]]), phase_data.gallery[0, : len(NAMES)]


@pytest.mark.parametrize("pooling", [0.0, 2.0])
@pytest.mark.parametrize("words", ["cat", None])
def test_each_reading_is_what_a_detector_of_its_own_answers(with_likeness, phase_data, asked, pooling, words):
    torch.nn.init.normal_(with_likeness.score_head.region.weight)  # ARD- and ARD differ
    model, (_, gallery) = tied(with_likeness, pooling), asked
    prompt = build_prompt([[Phrase(words, phase_data.queries[0, 0].float())]])
    found = read(model, prompt, gallery, NAMES, (False, True))
    for name, one in (("judged", untied(model)), ("words", tied(with_likeness, pooling, likeness_weight=0.0))):
        assert [getattr(of, name) for of in found] == [of.ranked for of in read(one, prompt, gallery, NAMES)], name
    assert found[0].ranked != found[1].ranked and found[1].ranked != found[1].judged and found[1].ranked != found[1].words


@pytest.mark.parametrize("pooling", [0.0, 2.0])
def test_words_alone_say_those_of_the_strongest_region(with_likeness, asked, pooling):
    model, (prompt, gallery) = tied(with_likeness, pooling), asked
    (found,) = read(model, prompt, gallery, NAMES, (False,))
    with torch.no_grad():
        match = model.match(gallery, prompt.expand(len(gallery)), adapted=False)
        exemplar = prompt.kind[0] == EXEMPLAR
        words = model.score_head(match.regions, match.tokens, match.present, False)[..., exemplar][..., 0].amax(1)
    assert torch.allclose(torch.tensor([a.score for a in found.words]), words.sigmoid(), atol=1e-6)


def test_the_detector_looks_once(with_likeness, asked, monkeypatch):
    model, decoded = tied(with_likeness, 2.0), []
    monkeypatch.setattr(model, "_decode", lambda *given, decode=model._decode: decoded.append(1) or decode(*given))
    read(model, *asked, NAMES, (False, True))
    assert len(decoded) == 1


def test_parts_of_a_gallery_keep_two_threads_busy_alike():
    for n in range(200):
        parts = [list(range(n))[part] for part in even_parts(n)]
        sizes = [len(part) for part in parts]
        assert sum(parts, []) == list(range(n)) and all(0 < size <= BATCH for size in sizes)
        assert n < 8 or len(sizes) % 2 == 0 and max(sizes) - min(sizes) <= 1


def test_a_detector_that_is_not_tied_judges_as_it_ranks_and_keeps_no_words_apart(with_likeness, asked, threads):
    threads(1)  # as each part of a gallery has: two in one operation sum in another order
    (found,) = read(with_likeness, *asked, NAMES, (False,))
    assert found == Readings(rank_variants(with_likeness, *asked, NAMES, (False,))[0], found.ranked, [])
    assert found.named("ARD") == {"ARD": found.ranked, "ARD" + JUDGED: found.ranked}


def test_readings_are_joined_in_order(with_likeness, asked):
    model, (prompt, gallery) = tied(with_likeness, 2.0), asked
    parts = [read(model, prompt, gallery[part], NAMES[part], (True,))[0] for part in (slice(0, 4), slice(4, None))]
    assert [a.image_id for a in Readings.joined(parts).judged] == NAMES
    assert Readings.joined(parts).ranked == parts[0].ranked + parts[1].ranked


def test_a_detector_that_pools_wants_one_exemplar(with_likeness, asked):
    with pytest.raises(ValueError, match="one exemplar, found 0"):
        read(tied(with_likeness, 2.0), build_prompt([[Phrase("cat")]]), asked[1], NAMES, (False,))


def test_a_method_tells_the_rows_of_every_reading(with_likeness, tmp_path):
    dataset, model = toy_dataset(tmp_path), tied(with_likeness, 2.0)
    model.set_adapters(True)
    gallery, query = dataset.open_gallery("test"), dataset.query(dataset.samples["test"][0])
    one, both = DetectorMethod(model).read(query, gallery), DetectorMethod(model).read_both(query, gallery)
    assert list(both) == ["ARD-", "ARD-" + JUDGED, "ARD-" + WORDS, "ARD", "ARD" + JUDGED, "ARD" + WORDS]
    assert one == {row: both[row] for row in one} and list(one) == list(both)[3:]
    assert {name: both[name] for name in ("ARD-", "ARD")} == DetectorMethod(model).rank_both(query, gallery)


@pytest.mark.parametrize("pooling", [None, 0.0, 2.0])
def test_what_stands_in_a_margin_is_no_answer(with_likeness, asked, pooling):
    model = with_likeness if pooling is None else tied(with_likeness, pooling)
    prompt, gallery = asked
    with torch.no_grad():
        boxes = model.match(gallery, prompt.expand(6), adapted=True).boxes
    middles = (boxes[..., 0] + boxes[..., 2]) / 2
    (free,), other = read(model, prompt, gallery, NAMES, (True,)), []
    for side in (0, 1):  # the picture is what lies left, or right, of the median region; the rest is margin
        edge = middles.median(1).values
        low, high = (torch.zeros(6), edge + 0.01) if side == 0 else (edge - 0.01, torch.full((6,), 64.0))
        frames = torch.stack([low, torch.zeros(6), high, torch.full((6,), 64.0)], 1)
        (found,) = read(model, prompt, gallery, NAMES, (True,), frames)
        for answers in (found.ranked, found.judged, found.words):
            assert all(a <= (x.box[0] + x.box[2]) / 2 <= b for a, b, x in zip(low, high, answers)), side
        assert all(0 < a.score < 1 for a in found.ranked)
        other.append(found.ranked != free.ranked)
    assert any(other)
    everywhere, nowhere = (read(model, prompt, gallery, NAMES, (True,), torch.tensor([frame] * 6))[0]
                           for frame in ([0.0, 0, 64, 64], [64.0, 64, 64, 64]))
    assert everywhere == nowhere == free, "where every region lies in the margin, all of them answer"
