"""AD+ and AD-: joins exemplars and generated queries into samples and galleries, counts them, checks the splits.

Between generation and the detector (paper, section 4.3). Leak probes are in `ard.leaks`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ard.files import sha256_bytes
from ard.records import SPLITS, Dataset, GalleryImage, RecordError, Sample, read_image
from ard.templates import context_medium

TABLE1_COLUMNS = (
    "dataset", "split", "n_classes", "n_concepts", "n_drawings", "n_positive", "n_negative", "gallery_size")
FACTS = ("split", "individual_id", "drawing", "designer")


Setting = Callable[[str, int], tuple[str, str]]  # class and number of a sentence -> context and medium


def table4(class_name: str, template: int) -> tuple[str, str]:
    """Those of the sentences of the COCO-type dataset, the same for each class."""
    return context_medium(template)


def shuffled(records: Iterable, key: str) -> tuple:
    """Records in the order of their key's hash, so that the order in a file says nothing about who belongs to whom."""
    return tuple(sorted(records, key=lambda r: sha256_bytes(getattr(r, key).encode())))


def to_sample(query, exemplar, query_folder: str, setting: Setting = table4) -> Sample:
    """Join a kept `generate.Drawn` with its `exemplars.Exemplar`, whose facts name split, individual and artwork."""
    missing = [name for name in FACTS if name not in exemplar.facts]
    if missing:
        raise RecordError(f"exemplar {exemplar.exemplar_id}: its facts lack {missing}")
    context, medium = setting(exemplar.class_name, query.template)
    return Sample(query.sample_id, f"{query_folder}/{query.file}", query.box, query.prompt, exemplar.class_name,
                  exemplar.exemplar_id, exemplar.file, exemplar.box, query.template, context, medium,
                  **{name: exemplar.facts[name] for name in FACTS})


def assemble(root: str | Path, exemplars: Sequence, queries: Sequence, images: Iterable[GalleryImage],
             query_folder: str = "queries", setting: Setting = table4) -> Dataset:
    """The dataset of all splits with queries; a split's gallery is every image with a kept exemplar, asked for or not.

    exemplars: `exemplars.Exemplar`; queries: kept `generate.Drawn`; images: the exemplar scenes with all true objects.
    All files are relative to `root`. RecordError: a query without exemplar, an exemplar without image, broken splits.
    """
    by_id, scenes = {e.exemplar_id: e for e in exemplars}, {im.file: im for im in images}
    lost = [q.sample_id for q in queries if q.exemplar_id not in by_id]
    lost += [e.exemplar_id for e in exemplars if e.file not in scenes]
    if lost:
        raise RecordError(f"{len(lost)} queries without an exemplar or exemplars without an image, first: {lost[:3]}")
    samples = [to_sample(q, by_id[q.exemplar_id], query_folder, setting) for q in queries]
    used = {split: {e.file for e in exemplars if e.facts.get("split") == split} for split in SPLITS}
    splits = [split for split in SPLITS if any(x.split == split for x in samples)]
    dataset = Dataset(Path(root),
                      {s: shuffled((x for x in samples if x.split == s), "sample_id") for s in splits},
                      {s: shuffled((scenes[f] for f in used[s]), "image_id") for s in splits})
    wrong = problems(dataset)
    if wrong:
        raise RecordError(f"{root}: the dataset is not sound: " + "; ".join(wrong[:5]))
    return dataset


def problems(dataset: Dataset) -> list[str]:
    """What would make results wrong: exemplars in two places, ids that stand twice, queries without their X."""
    found = []
    for what, keys in (("sample", [s.sample_id for rows in dataset.samples.values() for s in rows]),
                       ("image", [im.image_id for ims in dataset.gallery.values() for im in ims]),
                       ("gallery file", [im.file for ims in dataset.gallery.values() for im in ims])):
        found += [f"{what} {key} stands {n} times" for key, n in Counter(keys).items() if n > 1]
    homes = defaultdict(list)
    for images in dataset.gallery.values():
        for image in images:
            for obj in image.objects:
                if obj.individual_id:
                    homes[obj.individual_id].append(image.image_id)
    asked = {s.individual_id for rows in dataset.samples.values() for s in rows}
    found += [f"individual {i} stands in {len(homes[i])} gallery images" for i in sorted(asked) if len(homes[i]) != 1]
    for split, rows in dataset.samples.items():
        files = {im.file for im in dataset.gallery[split]}
        found += [f"{s.sample_id}: no {s.exemplar_file} in its gallery" for s in rows if s.exemplar_file not in files]
        found += [f"{s.sample_id}: of split {s.split}, listed in {split}" for s in rows if s.split != split]
    return found


def shared_drawings(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """Drawings whose individuals are exemplars in more than one split -> those splits; a stratum of its own."""
    splits = defaultdict(set)
    for split, rows in dataset.samples.items():
        for s in rows:
            splits[s.drawing].add(split)
    return {d: tuple(x for x in SPLITS if x in where) for d, where in sorted(splits.items()) if d and len(where) > 1}


def drop_unreadable(dataset: Dataset) -> Dataset:
    """The dataset without images that cannot be opened, and without the samples that need them; `bad` lists each."""
    bad: list[str] = []

    def opens(file: str) -> bool:
        try:
            read_image(dataset.root / file)
            return True
        except RecordError as error:
            bad.append(str(error))
            return False

    gallery = {split: tuple(im for im in images if opens(im.file)) for split, images in dataset.gallery.items()}
    samples = {}
    for split, rows in dataset.samples.items():
        files = {im.file for im in gallery[split]}
        samples[split] = tuple(s for s in rows if s.exemplar_file in files and opens(s.query_file))
        lost = [s.sample_id for s in rows if s.exemplar_file not in files]
        bad += [f"{sample_id}: left out, its exemplar image cannot be read" for sample_id in lost]
    return replace(dataset, samples=samples, gallery=gallery, bad=dataset.bad + tuple(bad))


def table1(dataset: Dataset, name: str) -> list[dict]:
    """One row a split, in `TABLE1_COLUMNS`; as in the paper, negatives are pairs: queries x other images."""
    rows = []
    for split, samples in dataset.samples.items():
        size = len(dataset.gallery[split])
        rows.append({"dataset": name, "split": split, "n_classes": len({s.class_name for s in samples}),
                     "n_concepts": len({s.concept_id for s in samples}),
                     "n_drawings": len({s.drawing for s in samples}), "n_positive": len(samples),
                     "n_negative": len(samples) * (size - 1), "gallery_size": size})
    return rows


def card(dataset: Dataset, name: str, probes: Sequence[Mapping] = (), notes: Sequence[str] = ()) -> str:
    """The dataset card as Markdown: what it is, its counts, how it splits, what the leak probes found."""
    counts = table1(dataset, name)
    shared = shared_drawings(dataset)
    lines = [f"# {name}", "", "Samples (Q, R_Q, p, X, R_X) for region-level attribution: which region of which image a",
             "generated region was learned from. Each Q was drawn by a generator customised on one exemplar R_X.", "",
             "## Files", "", "- `samples_{split}.jsonl`: AD+, one sample a line; boxes are xyxy in pixels.",
             "- `gallery_{split}.json`: the images to rank, in COCO form, every true object with its individual id.",
             "- Pictures lie where they were made, in `../queries` and `../collection/images`; records name them from here.",
             "- AD-: for each sample all other images of its split's gallery.", "", "## Counts", "",
             *markdown(counts, TABLE1_COLUMNS[1:]), "", "## Splits", "",
             "An exemplar individual stands in exactly one image of all splits. "
             + (f"{len(shared)} drawings are used by exemplars of more than one split." if shared else
                "No drawing is used by exemplars of more than one split.")]
    if probes:
        lines += ["", "## Leak probes", "",
                  "Recall@1 of rankings that must know nothing, beside what chance gives in 95% of shuffles.", "",
                  *markdown(probes, tuple(probes[0]))]
    if notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def markdown(rows: Sequence[Mapping], columns: Sequence[str]) -> list[str]:
    """Lines of a Markdown table.

    >>> markdown([{"a": 1, "b": "x"}], ("b", "a"))
    ['| b | a |', '| --- | --- |', '| x | 1 |']
    """
    return [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns),
            *(f"| {' | '.join(str(row[c]) for c in columns)} |" for row in rows)]
