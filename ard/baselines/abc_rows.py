"""AbC's rows of the arena: four encoders, each with whole pictures, with R_Q's crop, and with crops behind the class filter.

The published method compares whole pictures; the crops are what FACTS 5 and 11 call the fair variant.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ard.baselines.abc import AbCConfig, Learned, Mappers, abc_method, augmented, pair_features, train
from ard.baselines.cosine import CropRanker, Encode
from ard.baselines.encoders import unet_encoder, vae_encoder, vit_encoder
from ard.baselines.kit import Kit
from ard.baselines.registry import Entry
from ard.baselines.rendered_crops import rendered_crops
from ard.baselines.self_supervised import ViTConfig, load_vit, mild, strong, train_vit
from ard.config import ConfigError, from_dict, nearest
from ard.files import kept_arrays, sha256_bytes, sha256_tree
from ard.generator import redraws
from ard.records import Dataset
from ard.world import World

AUGMENT = {"none": None, "mild": mild, "strong": strong}
READS = {"efficientnet": (), "vae": ("models/generator",), "unet": ("models/generator",), "vit": ("world",)}
SOURCE = "Wang et al. 2023, section 4; supplement 3.1"


@dataclass(frozen=True)
class AbCSettings:
    """The rows' settings. `vae_grid`, `unet_timestep` and `crop_regularisation` were chosen on validation; the others are
    published or earlier values. Notebook 23 asks what changes of them are worth. ConfigError: no such encoder."""

    mappers: AbCConfig = field(default_factory=AbCConfig)
    # by encoder, instead of the mappers' own, where both sides are crops
    crop_regularisation: dict[str, float] = field(default_factory=lambda: {"efficientnet": 0.5})
    augment: Literal["none", "mild", "strong"] = "mild"  # of training pictures before they are encoded; as published
    copies: int = 4  # augmented copies of each training picture; published: a new one each time
    vae_grid: int = 4  # cells a side that latents are averaged over
    unet_timestep: int = 100  # of 1000: noise on the picture that the UNet reads
    vit: ViTConfig = field(default_factory=ViTConfig)
    rendered: int = 1500  # base individuals whose crops join AD+ in one row, two queries each; as in ARD's first phase
    vit_scenes: int = 4000  # base scenes rendered once, which the ViT learns from; published 1.28 million pictures
    seed: int = 0  # of scenes and augmentation

    def __post_init__(self):
        for name in self.crop_regularisation:
            if name not in READS:
                raise ConfigError(f"crop_regularisation: no encoder '{name}'; {nearest(name, READS)}")

    def mappers_of(self, encoder: str, view: str) -> AbCConfig:
        """How the mappers over an encoder and a view of the pictures are trained."""
        if view != "crops":
            return self.mappers
        return replace(self.mappers, regularisation=self.crop_regularisation.get(encoder, self.mappers.regularisation))


def settings(kit: Kit) -> AbCSettings:
    return from_dict(AbCSettings, dict(kit.settings.get("abc_rows", {})), "params.yaml:arena.methods.abc_rows")


# ---- what is kept ----------------------------------------------------------------------------------------------------
def key(*parts) -> str:
    """Twelve digits that change with any of the parts, for names of kept files."""
    return sha256_bytes(json.dumps(parts, sort_keys=True).encode())[:12]


def scenes(world: World, count: int, seed: int) -> np.ndarray:
    """uint8 (count, 64, 64, 3): scenes of base individuals; scene i depends on (seed, i) alone."""
    return np.stack([world.scene(np.random.default_rng([seed, i])).image for i in range(count)])


def vit_file(kit: Kit, chosen: AbCSettings) -> Path:
    """The ViT's weights, trained on scenes where they are not there yet."""
    name = key(asdict(chosen.vit), chosen.vit_scenes, chosen.seed, sha256_tree(kit.data / "world"))

    def make(path: Path) -> None:
        pool = kept_arrays(path.with_suffix(".npz"), lambda: {
            "images": scenes(World.load(kit.data / "world"), chosen.vit_scenes, chosen.seed)})["images"]
        train_vit(lambda rng, n: list(pool[rng.integers(len(pool), size=n)]), chosen.vit, path)

    return kit.kept(f"abc/vit-{name}.safetensors", make)


def encoder(kit: Kit, name: str) -> Encode:
    """One of READS: pictures of any sizes -> features."""
    chosen = settings(kit)
    makers: dict[str, Callable[[], Encode]] = {
        "efficientnet": lambda: kit.efficientnet,
        "vae": lambda: vae_encoder(kit.generator, chosen.vae_grid),
        "unet": lambda: unet_encoder(kit.generator, chosen.unet_timestep),
        "vit": lambda: vit_encoder(load_vit(vit_file(kit, chosen)))}
    return makers[name]()


def learned(kit: Kit, name: str, view: str, encode: Encode, ad_train: Dataset, more: bool = False) -> Mappers:
    """Mappers over an encoder for a view of AD+ train, joined by rendered crops where `more` is wanted. Features and mappers are
    kept, so a killed run goes on."""
    chosen, samples = settings(kit), ad_train.samples["train"]
    config = chosen.mappers_of(name, view)
    shown = {k: v for k, v in asdict(chosen).items() if k not in ("mappers", "crop_regularisation")}
    inputs = [kit.content, [s.sample_id for s in samples], {r: sha256_tree(kit.data / r) for r in READS[name]}]
    file = f"abc/{name}-{view.replace(' ', '-')}-{key(shown, inputs)}"

    def taught() -> dict[str, np.ndarray]:
        return pair_features(ad_train, samples, encode, view, AUGMENT[chosen.augment], chosen.copies, chosen.seed)

    def make(path: Path) -> None:
        pairs = kept_arrays(kit.work / f"{file}.npz", taught)
        if more:
            drawn = key(*(sha256_tree(kit.data / name) for name in ("world", "models/generator")))
            rendered = kept_arrays(kit.work / f"{file}-rendered-{drawn}.npz", lambda: rendered_features(kit, encode, chosen))
            pairs = beside(pairs, rendered)
        train(**pairs, config=config)[0].save(path)

    return Mappers.load(kit.kept(f"{file}{'-rendered' if more else ''}-{key(asdict(config))}.safetensors", make))


def rendered_features(kit: Kit, encode: Encode, chosen: AbCSettings) -> dict[str, np.ndarray]:
    """What `train` wants of rendered crops, in the form of `pair_features`."""
    blemish = redraws(kit.generator, (0.2, 0.6))  # the shares of the noise's way that ARD's first phase uses
    crops = rendered_crops(World.load(kit.data / "world"), chosen.rendered, 2, chosen.seed, blemish)
    found = augmented([*crops.real, *crops.queries], encode, AUGMENT[chosen.augment], chosen.copies, chosen.seed)
    count = len(crops.real)
    return {"real": found[:, :count], "synthetic": found[:, count:], "owner": crops.owner, "kind": np.zeros(len(crops.owner), int)}


def beside(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Two sets of pairs as one."""
    both = {name: np.concatenate([first[name], second[name]], 1) for name in ("real", "synthetic")}
    owner = np.concatenate([first["owner"], second["owner"] + first["real"].shape[1]])
    return {**both, "owner": owner, "kind": np.concatenate([first["kind"], second["kind"]])}


# ---- rows ------------------------------------------------------------------------------------------------------------
def whole(name: str, crop_query: bool) -> Callable[[Kit], Learned]:
    """Whole gallery pictures against the whole query, or against R_Q's crop with mappers trained that way."""
    def build(kit: Kit) -> Learned:
        encode, view = encoder(kit, name), "crop query" if crop_query else "whole"
        return Learned(lambda ad_train: learned(kit, name, view, encode, ad_train),
                       lambda mappers: abc_method(mappers, encode, crop_query))
    return build


def filtered(name: str) -> Callable[[Kit], CropRanker]:
    """R_Q's crop against the crops that the open-set detector proposes for the class; features as they are."""
    def build(kit: Kit) -> CropRanker:
        return CropRanker(encoder(kit, name), kit.proposals)
    return build


def filtered_abc(name: str, more: bool = False) -> Callable[[Kit], Learned]:
    """The same crops through mappers trained on crops of exemplars and of queries; with `more` on rendered ones as well."""
    def build(kit: Kit) -> Learned:
        encode = encoder(kit, name)
        return Learned(lambda ad_train: learned(kit, name, "crops", encode, ad_train, more),
                       lambda mappers: CropRanker(encode, kit.proposals, mappers.map_real, mappers.map_synthetic))
    return build


def rows(name: str) -> list[Entry]:
    """An encoder's rows; those of EfficientNet that `ard.evaluation` has already are left out."""
    own = ("generator",) if name in ("vae", "unet") else ()
    reads, found = READS[name], READS[name] + ("models/open_set",)
    published = [Entry(f"AbC, {name}", whole(name, False), ("pairs", *own), SOURCE, reads),
                 Entry(f"class filter + {name}", filtered(name), ("text", "box", *own), "FACTS 12, concept baselines", found)]
    fair = [Entry(f"AbC, {name}, R_Q crop", whole(name, True), ("box", "pairs", *own), f"{SOURCE}; query cut to R_Q", reads),
            Entry(f"class filter + AbC, {name}", filtered_abc(name), ("text", "box", "pairs", *own),
                  f"{SOURCE}; crops, class filter", found)]
    taught = Entry(f"class filter + AbC, {name}, rendered pairs", filtered_abc(name, True),
                   ("text", "box", "pairs", "rendered", *own), f"{SOURCE}; crops, class filter, ARD's rendered pairs",
                   (*found, "world", "models/generator"))
    return [*fair, taught] if name == "efficientnet" else published + fair


ENTRIES = [entry for name in READS for entry in rows(name)]
