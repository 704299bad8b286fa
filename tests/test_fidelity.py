import numpy as np

from ard import fidelity
from ard.exemplars import Exemplar
from ard.generate import Drawn
from ard.templates import COCO_SETTINGS


class Oracle:
    """Knows what a rendering shows: the mean colour inside the box."""

    def embed(self, images, boxes):
        crops = [im[int(b[1]):int(b[3]), int(b[0]):int(b[2])].reshape(-1, 3) / 255 for im, b in zip(images, boxes)]
        vectors = np.stack([np.concatenate([c.mean(0), c.std(0)]) - 0.3 for c in crops])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Yes:
    def predict(self, images):
        return {"class": np.array(["cat"] * len(images)), "context": np.array(["beach"] * len(images)),
                "medium": np.array(["photo"] * len(images))}


def exemplar(world, class_name, split, number):
    person = world.individual(class_name, split, np.random.default_rng(number))
    facts = {"split": split, "individual_id": person.individual_id, "designer": person.designer}
    return Exemplar(f"{class_name}-{split}-{number}", "x.png", class_name, (0, 0, 1, 1), 1.0, "m.png", 1, facts)


def test_a_pool_holds_the_truth_first_then_its_own_split(world):
    everyone = [exemplar(world, "cat", split, n) for split in ("train", "val") for n in range(4)]
    pool = fidelity.pool_of(everyone[5], everyone, 6)
    assert pool[0] == world.individual("cat", "val", np.random.default_rng(1))
    ids = [p.individual_id for p in pool]
    assert ids[0] == everyone[5].facts["individual_id"] and len(ids) == 6
    assert set(ids[1:4]) <= {e.facts["individual_id"] for e in everyone[4:]}


def test_a_picture_without_a_box_shows_no_individual_and_the_template_says_what_is_right(world):
    everyone = [exemplar(world, "cat", "val", n) for n in range(3)]
    person, *_ = fidelity.pool_of(everyone[0], everyone, 3)
    scenes = [world.scene(np.random.default_rng(n), [person], context=c, medium=m)
              for n, (c, m) in enumerate(COCO_SETTINGS)]
    drawn = [Drawn(f"q{n}", everyone[0].exemplar_id, "cat", n, "", 0, "", None if n == 1 else s.objects[0].box, 1.0, "",
                   0.0) for n, s in enumerate(scenes)]
    table = fidelity.judge(fidelity.Judges(world, Yes(), Oracle()), drawn, [s.image for s in scenes], everyone)
    assert list(table["sample_id"]) == [f"q{n}" for n in range(10)] and not table.loc[1, "individual"]
    assert table["class"].all() and table["context"].sum() == 6 and table["medium"].sum() == 5
    assert table["grey"].sum() == 2 and table["individual"].dtype == bool
