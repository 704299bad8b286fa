"""Model cards: the README.md that stands in the folder of each shipped model."""

from __future__ import annotations

from collections.abc import Mapping

# model: (title, what it is and what it is not for)
ABOUT = {
    "generator": ("Generator of the mini world", """
A `StableDiffusionPipeline` at small width: 64-pixel pictures, 8x8 latents, v-prediction. It knows ten animals, five
places and six media in the words of the paper's Table 4, and nothing else."""),
    "open_set": ("Open-set detector", """
MM Grounding DINO at small width, in the place of GroundingDINO: class names in, boxes out. Frozen EfficientNet-lite0
(vision) and MiniLM (text) come from their packages, not from here. `operating_point.json` holds the score from which a
box counts, set on base scenes."""),
    "sam": ("Segmenter", """
`segment_anything`'s own modules at small width, in the place of SAM ViT-H: a box in, a mask out. Only the box prompt
was trained; points and masks as prompts were not."""),
    "exemplar_prompted": ("Exemplar-prompted detector", """
The open-set detector trained further to take a visual exemplar, a phrase or both, in the place of CountGD: it boxes all
things of the exemplar's *class*. It never saw two pictures of one individual as exemplar and answer."""),
    "judges": ("Judges", """
Linear probes for class, context and medium on frozen features (`probes.safetensors`), and an encoder that tells
individuals of a class apart (`identity/`). They measure what a generator draws and stand in no row of any table."""),
}


def model_card(model: str, notebook: str, settings: Mapping[str, object], measured: Mapping[str, object]) -> str:
    """Markdown of a model of `ABOUT`: what it is, what it was trained on, its settings, what was measured."""
    title, about = ABOUT[model]
    return f"""# {title}
{about}

Trained by `notebooks/pretrain/{notebook}.ipynb` on rendered scenes of *base* drawings only, as the catalogue
`data/world/catalogue.csv` lists them: no drawing of an exemplar was seen, in any appearance.

Licence: Apache-2.0 for the weights; the drawings keep their own licences.

{_table("setting", settings)}

{_table("measured", measured)}
"""


def _table(head: str, rows: Mapping[str, object]) -> str:
    def text(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return "\n".join([f"| {head} | value |", "| --- | --- |", *(f"| {key} | {text(v)} |" for key, v in rows.items())])
