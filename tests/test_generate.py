import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from diffusers import DDPMScheduler
from tiny_pipeline import tiny_pipeline

from ard import generate as module
from ard.contact import contact_sheet
from ard.customize import CustomizeConfig
from ard.customize_all import customize_all
from ard.exemplars import Exemplar, write_mask
from ard.files import Ledger, read_jsonl
from ard.generate import GenerateConfig, _recipe, copy_similarity, gate, generate_all, generate_concept, sample_images

TEMPLATES = ("A photo of {} standing in a forest.", "An oil painting of {} on the beach.", "A photo of {}.")
CONFIG = GenerateConfig(steps=2, guidance=2.0)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Two learned concepts of a tiny pipeline: (pipe, root, exemplars, rows)."""
    root = tmp_path_factory.mktemp("root")
    pipe, exemplars = tiny_pipeline(root), []
    for i in range(2):
        image = np.random.default_rng(i).integers(0, 255, (32, 32, 3)).astype(np.uint8)
        mask = np.zeros((32, 32), bool)
        mask[4:28, 4:28] = True
        Image.fromarray(image).save(root / f"{i}.png")
        write_mask(root / f"masks/{i}.png", mask)
        exemplars.append(Exemplar(f"c{i}", f"{i}.png", "cat", (4.0, 4.0, 28.0, 28.0), 0.9, f"masks/{i}.png", 576))
    config = CustomizeConfig(token_steps=1, weight_steps=1, batch=2)
    rows, _ = customize_all(pipe, exemplars, root, root / "deltas", config, Ledger(root / "l.jsonl"))
    return pipe, root, exemplars, rows


def detect(image, class_name):
    """Finds nothing, a small box or a large one, by the content of the image."""
    kind = int(image.astype(int).sum()) % 3
    boxes = [[], [[1, 1, 5, 30]], [[1, 1, 20, 30], [2, 2, 30, 30]]][kind]
    return np.array(boxes, float).reshape(-1, 4), np.linspace(0.4, 0.8, len(boxes))


def run(learned, out, ledger, seed=0, **kwargs):
    pipe, root, exemplars, rows = learned
    return generate_all(pipe, exemplars, rows, root, root / "deltas", out, TEMPLATES, detect, CONFIG, ledger, seed, **kwargs)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.*")) if p.is_file()}


def test_every_pair_is_kept_or_rejected_for_a_reason(learned, tmp_path):
    kept, rejected, failed = run(learned, tmp_path / "out", Ledger(tmp_path / "l.jsonl"), likeness=lambda *a: -1.0)
    assert len(kept) + len(rejected) == 6 and not failed
    for d in kept + rejected:
        image = np.asarray(Image.open(tmp_path / "out" / d.file))
        boxes, scores = detect(image, "cat")
        assert d.reason == ("not found", "too small", "")[len(boxes)]
        assert (d.box is None) == (len(boxes) == 0)
        assert d.likeness == (-1.0 if len(boxes) else None)  # a bad likeness drops nothing
        assert d.prompt.count("<v1> cat") == 1 and -1 <= d.copy_similarity <= 1
    assert len(read_jsonl(tmp_path / "out/queries.jsonl")[0]) == len(kept)
    assert len({d.seed for d in kept + rejected}) == 6


def test_an_image_does_not_depend_on_its_batch(learned):
    pipe = learned[0]
    together = sample_images(pipe, ["a photo of a cat", "a photo of a dog"], [7, 8], CONFIG)
    alone = sample_images(pipe, ["a photo of a dog"], [8], CONFIG)
    assert np.abs(together[1].astype(int) - alone[0]).max() <= 1
    assert together.shape == (2, 32, 32, 3) and together.dtype == np.uint8


def test_killed_and_resumed_ends_in_the_same_bytes(learned, tmp_path, monkeypatch):
    run(learned, tmp_path / "whole", Ledger(tmp_path / "w.jsonl"))
    real, calls = module.atomic_write_bytes, []

    def killed(path, picture):
        calls.append(path)
        if len(calls) == 5:
            raise KeyboardInterrupt
        real(path, picture)

    monkeypatch.setattr(module, "atomic_write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        run(learned, tmp_path / "part", Ledger(tmp_path / "p.jsonl"))
    run(learned, tmp_path / "part", Ledger(tmp_path / "p.jsonl"))
    assert len(calls) == 8 and contents(tmp_path / "part") == contents(tmp_path / "whole")
    with pytest.raises(ValueError, match="other settings"):
        run(learned, tmp_path / "part", Ledger(tmp_path / "p.jsonl"), seed=1)
    next((tmp_path / "part").glob("*.jpg")).unlink()  # as after the finished folder was put in its place
    run(learned, tmp_path / "part", Ledger(tmp_path / "p.jsonl"))
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_bad_delta_is_listed_and_the_pipeline_is_clean(learned, tmp_path):
    pipe, root, exemplars, rows = learned
    bad = [{**rows[0], "delta": "missing.safetensors"}, {**rows[1], "exemplar_id": "ghost"}, rows[1]]
    (root / "deltas/torn.safetensors").write_bytes(b"torn")
    bad.append({**rows[0], "delta": "torn.safetensors"})
    before = torch.cat([p.flatten() for p in pipe.unet.parameters()]).clone()
    kept, rejected, failed = generate_all(pipe, exemplars, bad, root, root / "deltas", tmp_path, TEMPLATES, detect, CONFIG,
                                          Ledger(tmp_path / "l.jsonl"))
    assert len(kept) + len(rejected) == 3 and len(failed) == 3
    text = json.dumps(failed)
    assert "missing.safetensors" in text and "ghost" in text and "torn.safetensors" in text
    assert torch.equal(before, torch.cat([p.flatten() for p in pipe.unet.parameters()]))


def test_copy_similarity_sees_through_mirror_and_shift():
    a = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    b = np.random.default_rng(1).integers(0, 255, (16, 16, 3)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    assert copy_similarity(a, a) == pytest.approx(1)
    assert copy_similarity(a[:, ::-1], a) == pytest.approx(1)
    assert copy_similarity(np.roll(a, 4, axis=1), a) > 0.95
    assert copy_similarity(a, b) < 0.5


def test_contact_sheet():
    images = [np.full((8, 8, 3), 200, np.uint8)] * 3
    mask = np.ones((8, 8), bool)
    sheet = contact_sheet(images, [None, (1, 1, 7, 7), [(0, 0, 4, 4), (4, 4, 8, 8)]], ["a", "a very long caption", ""], 2, 2,
                          [None, mask, None])
    assert sheet.dtype == np.uint8 and sheet.shape == (2 * (16 + 12 + 4) + 4, 2 * 20 + 4, 3)
    assert (sheet == np.array([230, 50, 50], np.uint8)).all(-1).any()
    with pytest.raises(ValueError, match="one size"):
        contact_sheet([])


class Pipe:
    """Answers with given pictures in [0, 1] and keeps what it was asked."""

    def __init__(self, images):
        self.images, self.scheduler, self.vae_scale_factor = images, DDPMScheduler(), 2
        self.unet = SimpleNamespace(config=SimpleNamespace(sample_size=4))

    def set_progress_bar_config(self, **_):
        pass

    def __call__(self, prompts, **how):
        self.asked, self.by = how, type(self.scheduler).__name__
        if isinstance(self.images, Exception):
            raise self.images
        return SimpleNamespace(images=self.images)


def test_pictures_are_drawn_as_the_settings_say_and_rounded_to_the_nearest():
    values = np.array([0.0, 9.4, 9.6, 254.6, 255.0]).reshape(1, 1, 5, 1).repeat(3, 3)
    pipe = Pipe(values / 255)
    before = pipe.scheduler
    config = GenerateConfig(steps=7, guidance=2.5, negative_prompt="blurred")
    drawn = sample_images(pipe, ["a", "b"], [1, 2], config)
    assert drawn[0, 0, :, 0].tolist() == [0, 9, 10, 255, 255] and drawn.dtype == np.uint8
    asked = pipe.asked
    assert (asked["num_inference_steps"], asked["guidance_scale"], asked["height"], asked["width"]) == (7, 2.5, 8, 8)
    assert asked["negative_prompt"] == ["blurred"] * 2 and [g.initial_seed() for g in asked["generator"]] == [1, 2]
    assert pipe.by == "DDIMScheduler" and pipe.scheduler is before
    pipe.images = RuntimeError("out of memory")
    with pytest.raises(RuntimeError):
        sample_images(pipe, ["a"], [1], config)
    assert pipe.scheduler is before, "also after an error"


def test_a_side_of_just_the_least_is_large_enough():
    assert gate(((0, 0, 12, 30), 0.9), 12) == gate(((0, 0, 30, 12), 0.9), 12) == "" and gate(((0, 0, 30, 11.9), 0.9), 12) == "too small"


def test_what_is_measured_compares_q_with_x_and_r_q_with_r_x(monkeypatch):
    x, other = (np.random.default_rng(i).integers(0, 255, (4, 4, 3), np.uint8).repeat(16, 0).repeat(16, 1) for i in range(2))
    told, r_x, r_q = [], (1.0, 2.0, 30.0, 40.0), (5.0, 6.0, 50.0, 60.0)
    monkeypatch.setattr(module, "sample_images", lambda *_: np.stack([x, other]))
    exemplar = Exemplar("c", "x.png", "cat", r_x, 0.9, "m.png", 9)
    drawn, _ = generate_concept(None, exemplar, "<v1>", x, ("A {}.", "The {}."), lambda image, name: (np.array([r_q]), np.array([0.5])),
                                GenerateConfig(), likeness=lambda *given: told.append(given) or 0.25)
    assert drawn[0].copy_similarity > 0.95 > 0.7 > drawn[1].copy_similarity
    for (q, box, shown, own), picture in zip(told, (x, other), strict=True):
        assert (box, own) == (r_q, r_x) and shown is x and np.abs(q.astype(int) - picture).mean() < 12


def test_a_concept_is_drawn_anew_where_anything_it_is_drawn_by_changed(tmp_path):
    for name, content in (("a", b"1"), ("b", b"2")):
        (tmp_path / name).write_bytes(content)
    config = GenerateConfig()
    given = [(config, 0, ("A {}.",), "a"), (config, 0, ("A {}.",), "b"), (config, 0, ("The {}.",), "a"), (config, 1, ("A {}.",), "a"),
             (GenerateConfig(steps=3), 0, ("A {}.",), "a")]
    found = [_recipe(*rest, tmp_path / name) for *rest, name in given]
    assert len(set(found)) == len(given) and _recipe(*given[0][:3], tmp_path / "a") == found[0]


def test_a_concept_drawn_in_parts_is_the_same(learned, tmp_path, monkeypatch):
    pipe, root, exemplars, rows = learned
    drawn, real = [], module.sample_images
    monkeypatch.setattr(module, "sample_images", lambda pipe, prompts, *told: drawn.append(list(prompts)) or real(pipe, prompts, *told))
    told = (exemplars[0], rows[0]["token"], np.zeros((32, 32, 3), np.uint8), TEMPLATES, detect)
    whole, pictures = generate_concept(pipe, *told, CONFIG)
    parts, again = generate_concept(pipe, *told, GenerateConfig(steps=2, guidance=2.0, batch=2))
    assert [len(prompts) for prompts in drawn] == [3, 2, 1] and sum(drawn[1:], []) == drawn[0]
    assert [(d.prompt, d.seed, d.file) for d in whole] == [(d.prompt, d.seed, d.file) for d in parts] and len(pictures) == len(again)
