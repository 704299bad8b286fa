"""The detector at its published sizes: Swin and BERT before the joint part (paper, section 3.1; FACTS 1.2 to 1.4, 2).

T-B, B-B and B-L of the paper's Table 3 are built from configuration alone; weights come from official checkpoints
(`ard.detector.convert`), from transformers' Grounding DINO (`from_grounding_dino`) or from a folder of ours.
"""

from dataclasses import dataclass
from typing import NamedTuple, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align
from transformers import BertConfig, MMGroundingDinoConfig, SwinConfig
from transformers.models.mm_grounding_dino.modeling_mm_grounding_dino import MMGroundingDinoConvEncoder

from ard.backbones import wordpieces
from ard.detector.joint import JointDetector, Match, Scene
from ard.detector.prompts import EXEMPLAR, Phrase, Prompt, build_prompt

STRIDE = 8  # pixels a cell of the finest map
SWIN = {
    "T": dict(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, image_size=224),
    "B": dict(embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], window_size=12, image_size=384),
}
BERT = {"B": {}, "L": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)}
SIZES = ("T-B", "B-B", "B-L")  # Swin, then BERT, as the paper names them


class AttributionDetectorConfig(MMGroundingDinoConfig):
    """Grounding DINO's published settings, and ours."""

    model_type = "attribution-detector"

    dropout: float | int = 0.0
    fused_levels: int = 4  # all of them go through the fusion encoder
    fusion_scale: float = 1e-4
    scaled_logits: bool = False  # token logits are plain products (Grounding DINO)
    score_rule: str = "mean"  # how text and exemplar probabilities become one, one of SCORE_RULES
    adapters: bool = False  # F and F~ of the score head in use (after phase 1)
    adapter: str = "linear"  # what they are, a key of score_head.ADAPTERS
    shared_vision: bool = True  # I_1 and I_2 of the paper are one backbone
    calibration: list | None = None  # the numbers of `ard.chances.Chances`, once measured


def published_config(size: str, **changes) -> AttributionDetectorConfig:
    """The configuration of "T-B", "B-B" or "B-L"; `changes` go over it.

    >>> published_config("B-L").text_config.hidden_size, published_config("T-B", num_queries=300).num_queries
    (1024, 300)
    """
    if size not in SIZES:
        raise ValueError(f"size: expected one of {', '.join(SIZES)}, found {size!r}")
    vision, text = size.split("-")
    swin, bert = SwinConfig(**SWIN[vision], drop_path_rate=0.2, out_indices=[2, 3, 4]), BertConfig(**BERT[text])
    return AttributionDetectorConfig(backbone_config=swin, text_config=bert, **changes)


class Pictures(NamedTuple):
    """A padded batch, as `AttributionProcessor.collate` makes it."""

    pixels: Tensor  # (B, 3, H, W) normalised; 0 where padded
    mask: Tensor  # (B, H, W) bool: picture
    sizes: Tensor  # (B, 2) width and height without padding

    def to(self, device: torch.device | str) -> "Pictures":
        """The same batch on a device."""
        return Pictures(*(part.to(device) for part in self))


@dataclass(frozen=True, eq=False)
class Maps:
    """What the frozen backbone sees of a batch; no query inside: compute once, store. A slice is some of the pictures."""

    levels: tuple[Tensor, ...]  # (B, C, H, W) at strides 8, 16, 32
    masks: tuple[Tensor, ...]  # (B, H, W) bool: picture, for each level
    mask: Tensor  # (B, H, W) bool in pixels
    sizes: Tensor  # (B, 2) width and height of the pictures, pixels

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, rows: slice) -> "Maps":
        return Maps(tuple(t[rows] for t in self.levels), tuple(t[rows] for t in self.masks), self.mask[rows], self.sizes[rows])


class AttributionDetector(JointDetector):
    """The paper's AR detector: Grounding DINO whose caption holds exemplar tokens of another picture."""

    config_class = AttributionDetectorConfig
    config: AttributionDetectorConfig

    def __init__(self, config: AttributionDetectorConfig):
        super().__init__(config)
        self.query_backbone = None if config.shared_vision else MMGroundingDinoConvEncoder(config)
        self.post_init()

    # ---- the cut -------------------------------------------------------------------------------------------------
    def encode_image(self, pictures: Pictures) -> Maps:
        """Gallery pictures through I_1."""
        return self._maps(self.model.backbone.conv_encoder, pictures)

    def query_maps(self, pictures: Pictures) -> Maps:
        """Generated pictures through I_2."""
        return self._maps(self.query_backbone or self.model.backbone.conv_encoder, pictures)

    def encode_query(self, pictures: Pictures | None, boxes: Tensor | None, names: Sequence[str | None]) -> Prompt:
        """One phrase per query: its class name (or None) and the exemplar in box (B, 4) xyxy pixels of its picture through
        I_2 (or no pictures). Raises ValueError for a name longer than `max_text_len` allows."""
        vectors: Sequence[Tensor | None] = [None] * len(names)
        if pictures is not None:
            vectors = self.exemplar_tokens(self.query_maps(pictures), boxes)
        return self.prompt([[Phrase(name, vector)] for name, vector in zip(names, vectors, strict=True)])

    def exemplar_tokens(self, maps: Maps, boxes: Tensor) -> Tensor:
        """(B, d) of boxes (B, 4) xyxy pixels: the maps at the finest size, side by side, 1x1 projection, RoIAlign to one cell
        (FACTS 1.2, 2)."""
        finest = maps.levels[0].shape[-2:]
        spread = [F.interpolate(m, finest, mode="bilinear", align_corners=True) for m in maps.levels]
        projected = self.exemplar_projection(torch.cat(spread, 1))
        rois = list(torch.as_tensor(boxes, dtype=projected.dtype, device=projected.device)[:, None].unbind(0))
        return roi_align(projected, rois, 1, 1 / STRIDE, aligned=True).flatten(1)

    def prompt(self, prompts: Sequence[Sequence[Phrase]]) -> Prompt:
        """Captions "[CLS] cat <exemplar> . dog . [SEP]"; the exemplar of a `Phrase` is a token (d,) of `exemplar_tokens`."""
        first, last = self._words([101])[0], self._words([102])[0]
        sizes = self.config.text_config.hidden_size, self.config.d_model
        prompt = build_prompt(prompts, self.text_tokens, sizes, (first, last))
        if prompt.kind.shape[1] > self.config.max_text_len:
            raise ValueError(f"the longest caption has {prompt.kind.shape[1]} tokens; at most {self.config.max_text_len} fit")
        return prompt

    def text_tokens(self, name: str) -> Tensor:
        """BERT's features (n, hidden) of a name's word pieces and, last, of its delimiter.

        Each phrase is read alone and from position 0, which is what the published block-diagonal masks come to.
        """
        if {".", "?"} & set(name):
            raise ValueError(f"class name {name!r}: '.' and '?' end a phrase; leave them out")
        return self._words(wordpieces()(f"{name} .")["input_ids"][1:-1])

    def forward(self, pictures: Pictures, prompt: Prompt) -> Match:
        """A batch of pictures and a prompt for each."""
        return self.match(self.encode_image(pictures), prompt)

    # ---- what the joint part asks for ----------------------------------------------------------------------------
    def _new_exemplar_projection(self, config: AttributionDetectorConfig) -> nn.Module:
        channels = sum(self.model.backbone.conv_encoder.intermediate_channel_sizes)
        return nn.Conv2d(channels, config.d_model, 1)

    def _scene(self, maps: Maps) -> Scene:
        projections = list(self.model.input_proj_vision)
        levels = [project(level) for project, level in zip(projections, maps.levels)]
        masks, source = list(maps.masks), maps.levels[-1]
        for project in projections[len(levels) :]:  # coarser levels: strided convolutions on the last map
            source = project(source)
            levels.append(source)
            masks.append(_shrunk(maps.mask, source))
        place = self.model.backbone.position_embedding
        where = [place(level, mask).flatten(2).transpose(1, 2) + e for level, mask, e in zip(levels, masks, self.model.level_embed)]
        return Scene(
            torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1),
            torch.cat(where, 1),
            ~torch.cat([mask.flatten(1) for mask in masks], 1),
            [tuple(level.shape[-2:]) for level in levels],
            torch.stack([self.model.get_valid_ratio(mask, levels[0].dtype) for mask in masks], 1),
            maps.sizes,
        )

    def _query_tokens(self, prompt: Prompt) -> Tensor:
        is_exemplar = (prompt.kind == EXEMPLAR)[..., None]
        return torch.where(is_exemplar, prompt.exemplar, self.model.text_projection(prompt.text))

    @staticmethod
    def _unsigmoid(boxes: Tensor) -> Tensor:
        """As GroundingDINO's code: numerator and denominator are at least 1e-3."""
        return (boxes.clamp(1e-3, 1) / (1 - boxes).clamp(1e-3)).log()

    def _maps(self, encoder: nn.Module, pictures: Pictures) -> Maps:
        levels, masks = zip(*encoder(pictures.pixels, pictures.mask))
        return Maps(levels, masks, pictures.mask, pictures.sizes)

    @torch.no_grad()
    def _words(self, ids: Sequence[int]) -> Tensor:
        """BERT's features (n, hidden) of token ids that see each other and nothing else."""
        return self.model.text_backbone(torch.tensor([ids], device=self.device)).last_hidden_state[0]


def _shrunk(mask: Tensor, like: Tensor) -> Tensor:
    """The pixel mask at the size of a map, as the backbones shrink it."""
    return F.interpolate(mask[None].float(), like.shape[-2:]).bool()[0]
