"""The two commands of a person with a picture, a folder and perhaps an official checkpoint."""

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ard import cli
from ard.detector.convert import to_official
from ard.detector.model import save_detector
from ard.detector.published import AttributionDetector
from ard.detector.tied import TiedGroundingDinoForObjectDetection
from ard.files import FileError
from tests.detector.conftest import COLOURS, square, tiny  # noqa: F401
from tests.detector.official import small_config


@pytest.fixture
def place(tmp_path, tiny):  # noqa: F811
    rng = np.random.default_rng(0)
    (tmp_path / "gallery/more").mkdir(parents=True)
    for i, (name, colour) in enumerate(COLOURS.items()):
        Image.fromarray(square(rng, colour)[0]).save(tmp_path / "gallery" / ("more" if i else "") / f"{name}.png")
    Image.fromarray(square(rng, COLOURS["cat"])[0]).save(tmp_path / "query.png")
    save_detector(tiny, tmp_path / "mini")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def test_attribute_prints_every_picture_of_the_folder_strongest_first(place):
    (place / "gallery/torn.jpg").write_text("not a picture")
    (place / "gallery/one.heic").write_text("of an ending that is not read")
    result = run("attribute", place / "mini", place / "query.png", "4,4,40,40", place / "gallery", "--prompt", "cat")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines() if line.strip()[0].isdigit() and "ranked" not in line]
    assert [line[0] for line in lines] == ["1", "2", "3", "4"] and len({" ".join(line[3:]) for line in lines}) == 4
    assert [float(line[1]) for line in lines] == sorted((float(line[1]) for line in lines), reverse=True)
    assert "4 pictures ranked, 1 skipped, 1 files with other endings left out" in result.output and "note:" not in result.output
    assert "torn.jpg: not a readable image" in result.output


def test_a_detector_that_is_read_by_words_and_likeness_answers_so(place, tiny):  # noqa: F811
    save_detector(TiedGroundingDinoForObjectDetection.of(tiny, likeness_weight=1.5, pooling=2.0), place / "tied")
    assert isinstance(cli.load_attributor(place / "tied").detector, TiedGroundingDinoForObjectDetection)
    result = run("attribute", place / "tied", place / "query.png", "4,4,40,40", place / "gallery", "--prompt", "cat")
    assert result.exit_code == 0 and "4 pictures ranked" in result.output


def test_large_pictures_are_seen_in_windows(place):
    big = np.zeros((256, 256, 3), np.uint8)
    big[100:120, 30:56] = COLOURS["cat"]
    Image.fromarray(big).save(place / "gallery/big.png")
    asked = ["attribute", place / "mini", place / "query.png", "4,4,40,40", place / "gallery", "--prompt", "cat"]
    plain, closer = run(*asked), run(*asked, "--zoom", "4")
    assert plain.exit_code == closer.exit_code == 0 and "5 pictures ranked" in closer.output and plain.stdout != closer.stdout
    assert "zoom: expected at least 1, found 0.5" in " ".join(run(*asked, "--zoom", "0.5").output.split())


def test_further_pictures_of_the_same_thing_are_asked_about_together(place):
    asked = ["attribute", place / "mini", place / "query.png", "4,4,40,40", place / "gallery", "--prompt", "cat"]
    alone, twice, other = (run(*asked, *more) for more in ([], ["--also", f"{place / 'query.png'}:4,4,40,40"],
                                                           ["--also", f"{place / 'gallery/cat.png'}:10,10,60,60"]))
    assert alone.exit_code == twice.exit_code == other.exit_code == 0, other.output
    assert alone.stdout == twice.stdout != other.stdout, "the same picture twice says what it says once, where no chances are told"


@pytest.mark.parametrize("also", ["query.png", "query.png:4,4,40", "none.png:4,4,40,40"])
def test_a_further_picture_without_a_box_or_that_is_not_there_is_one_line(place, also):
    result = run("attribute", place / "mini", place / "query.png", "4,4,40,40", place / "gallery", "--also", also)
    assert result.exit_code == 2 and "Traceback" not in result.output


@pytest.mark.parametrize(("change", "reason"), [
    ({"box": "0.1,0.1,0.9,0.9"}, "shares"), ({"box": "a,b"}, "four numbers"), ({"box": "0,4,52"}, "four numbers"), ({"gallery": "none"}, "no such folder"),
    ({"model": "gallery"}, "no such file"), ({"query": "none.png"}, "image not found")])
def test_a_wrong_argument_is_one_line(place, change, reason):
    given = {"model": "mini", "query": "query.png", "box": "4,4,40,40", "gallery": "gallery", **change}
    result = run("attribute", *(value if key == "box" else place / value for key, value in given.items()))
    assert result.exit_code == 2 and reason in " ".join(result.output.replace("│", " ").split())


def test_convert_makes_a_detector_that_attribute_reads(place, monkeypatch):
    monkeypatch.setattr(cli, "published_config", lambda size: small_config())
    torch.manual_seed(0)
    state = to_official(AttributionDetector(small_config()), exemplars=False)
    torch.save({"model": {**state, "label_enc.weight": torch.zeros(3)}}, place / "official.pth")
    result = run("convert", place / "official.pth", place / "big")
    assert result.exit_code == 0, result.output
    assert "not used: 1" in result.output and "label_enc.weight" in result.output and "exemplar_projection.bias" in result.output
    attributor = cli.load_attributor(place / "big")
    assert isinstance(attributor.detector, AttributionDetector) and attributor.processor.short_side == 800
    del state["feat_map.bias"]
    torch.save(state, place / "less.pth")
    result = run("convert", place / "less.pth", place / "other")
    assert result.exit_code == 2 and "feat_map.bias is missing" in " ".join(result.output.replace("│", " ").split())
    assert not (place / "other").exists()


def test_a_folder_that_is_no_detector_is_named(place):
    (place / "gallery/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(FileError, match="'bert' is no detector of ours"):
        cli.load_attributor(place / "gallery")


def test_a_word_that_was_not_learned_is_said_to_be_none(place):
    result = run("attribute", place / "mini", place / "query.png", "4,4,40,40", place / "gallery", "--prompt", "dgo")
    assert result.exit_code == 0 and "have learned bear, cat" in result.output and "'dgo' is no such word" in result.output
