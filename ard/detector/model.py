"""The detector: transformers' MM Grounding DINO at small width, cut where it can be cached (DESIGN 7; FACTS 1.2, 12).

`encode_image` and `encode_query` are frozen and cacheable; `match` is the joint, trainable part. The frozen backbones
stay
outside the module, so a saved folder holds trained weights only.
"""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig, MMGroundingDinoConfig, MMGroundingDinoForObjectDetection, ResNetConfig
from transformers import initialization as init
from transformers.models.mm_grounding_dino.modeling_mm_grounding_dino import (
    MMGroundingDinoContrastiveEmbedding,
    MMGroundingDinoEncoder,
    MMGroundingDinoFusionLayer,
    encode_sinusoidal_position_embedding,
)

from ard.detector.features import IMAGE_SIZE, LEVELS, REGION, image_features, region_vectors, unpack
from ard.detector.prompts import EXEMPLAR, TEXT_SIZE, Phrase, Prompt, build_prompt, phrase_attention, positions
from ard.files import FileError, publish

ABSENT = -1e4  # logit of padding tokens: finite, so that neither loss nor gradient becomes NaN


class AttributionConfig(MMGroundingDinoConfig):
    """MM Grounding DINO's configuration, its defaults at the mini world's width, and three settings of our own."""

    model_type = "attribution-grounding-dino"

    d_model: int = 128
    num_queries: int = 30  # a 64-pixel scene holds at most four objects
    num_feature_levels: int = len(LEVELS)
    fused_levels: int = 2  # the coarsest levels go through the fusion encoder; the decoder also samples the fine one
    encoder_layers: int = 3
    decoder_layers: int = 3
    encoder_ffn_dim: int = 256
    decoder_ffn_dim: int = 512
    encoder_attention_heads: int = 4
    decoder_attention_heads: int = 4
    encoder_n_points: int = 2
    decoder_n_points: int = 4
    dropout: float | int = 0.0
    fusion_droppath: float | int = 0.0
    fusion_scale: float = 0.3  # transformers starts fusion at 1e-4, which suits fine-tuning only
    score_rule: str = "mean"  # how text and exemplar probabilities become one: "mean" or "product"
    adapters: bool = False  # F and F~ of the score head in use (after phase 1)
    likeness: bool = False  # regions and exemplars also compared by what is in them (not in the paper)

    def __post_init__(self, **kwargs):
        # placeholders: MM Grounding DINO insists on backbones; they only fix the widths of the projections
        self.backbone_config = ResNetConfig(
            embedding_size=8,
            hidden_sizes=[c for c, _ in LEVELS],
            layer_type="basic",
            depths=[1] * len(LEVELS),
            out_indices=list(range(1, len(LEVELS) + 1)),
        )
        self.text_config = BertConfig(vocab_size=1, hidden_size=TEXT_SIZE, num_hidden_layers=0)
        if self.score_rule not in ("mean", "product"):
            raise ValueError(f"score_rule: expected 'mean' or 'product', found {self.score_rule!r}")
        super().__post_init__(**kwargs)


class ScoreHead(nn.Module):
    """Token logits F(x) . F~(y) / sqrt(d) + bias. F and F~ start as the identity and are skipped in phase 1 (paper,
    eq. 1)."""

    def __init__(self, width: int):
        super().__init__()
        self.region = nn.Linear(width, width)  # F
        self.token = nn.Linear(width, width)  # F~
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, regions: Tensor, tokens: Tensor, present: Tensor, adapted: bool) -> Tensor:
        """(B, ..., N, d) regions and (B, T, d) tokens -> (B, ..., N, T) logits."""
        if adapted:
            regions, tokens = self.region(regions), self.token(tokens)
        extra = regions.dim() - tokens.dim()
        tokens = tokens[(slice(None), *[None] * extra)]
        logits = regions @ tokens.transpose(-1, -2) * regions.shape[-1] ** -0.5 + self.bias
        return logits.masked_fill(~present[(slice(None), *[None] * (extra + 1))], ABSENT)


class LikenessHead(nn.Module):
    """Logits scale * (cos(P r, P e) - threshold) of region vectors r in X with exemplars e: *what* is there, beside what
    kind of thing.

    The decoder's hidden states were trained to forget everything but class and place; r and e are read from the same
    frozen maps by the same RoIAlign, so equal individuals start alike. Not in the paper; after crop-cosine retrieval.
    """

    def __init__(self, width: int):
        super().__init__()
        self.project = nn.Linear(REGION, width, bias=False)
        nn.init.orthogonal_(self.project.weight)
        self.scale, self.threshold = nn.Parameter(torch.tensor(4.0)), nn.Parameter(torch.tensor(0.3))

    def forward(self, regions: Tensor, exemplars: Tensor, is_exemplar: Tensor) -> Tensor:
        """Standardised (B, ..., N, REGION) and (B, T, REGION) -> (B, ..., N, T), 0 for tokens that are no exemplar."""
        a, b = (nn.functional.normalize(self.project(x).float(), dim=-1) for x in (regions, exemplars))
        extra = a.dim() - b.dim()
        b, wanted = b[(slice(None), *[None] * extra)], is_exemplar[(slice(None), *[None] * (extra + 1))]
        return self.scale * (a @ b.transpose(-1, -2) - self.threshold) * wanted


@dataclass
class Match:
    """What `match` returns; `boxes` and `logits` are the last decoder layer's answer for N regions."""

    layer_boxes: Tensor  # (B, L, N, 4) cxcywh in [0, 1] of every decoder layer; of the last alone when not training
    layer_logits: Tensor  # (B, L, N, T)
    encoder_boxes: Tensor  # (B, K, 4) cxcywh of the first stage
    encoder_logits: Tensor  # (B, K, T)
    regions: Tensor  # (B, N, d) x of the last layer
    tokens: Tensor  # (B, T, d) y after the encoder
    present: Tensor  # (B, T)
    likeness: Tensor  # (B, N, T) what the likeness head added to the last layer's logits; 0 without one

    @property
    def logits(self) -> Tensor:
        """(B, N, T)."""
        return self.layer_logits[:, -1]

    @property
    def boxes(self) -> Tensor:
        """(B, N, 4) xyxy pixels, clipped to the picture."""
        centre, half = self.layer_boxes[:, -1].split(2, -1)
        half = half / 2
        return torch.cat([centre - half, centre + half], -1).clamp(0, 1) * IMAGE_SIZE


class AttributionGroundingDinoForObjectDetection(MMGroundingDinoForObjectDetection):
    """One class for three uses: open-set detector, exemplar-prompted detector (CountGD's place) and AR detector."""

    config_class = AttributionConfig
    config: AttributionConfig
    _tied_weights_keys = {r"bbox_embed.(?![0])\d+": r"bbox_embed.0", "model.decoder.bbox_embed": "bbox_embed"}

    def __init__(self, config: AttributionConfig):
        super().__init__(config)
        self.model.backbone.conv_encoder = None
        self.model.text_backbone = None
        coarse = copy.deepcopy(config)
        coarse.num_feature_levels = config.fused_levels
        self.model.encoder = MMGroundingDinoEncoder(coarse)
        self.class_embed = None
        self.model.decoder.class_embed = None
        self.register_buffer("region_mean", torch.zeros(REGION))
        self.register_buffer("region_std", torch.ones(REGION))
        self.exemplar_projection = nn.Linear(REGION, config.d_model)
        self.score_head = ScoreHead(config.d_model)
        self.likeness_head = LikenessHead(config.d_model) if config.likeness else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, MMGroundingDinoFusionLayer):
            init.constant_(module.vision_param, self.config.fusion_scale)
            init.constant_(module.text_param, self.config.fusion_scale)
        elif isinstance(module, ScoreHead):
            init.constant_(module.bias, -4.6)  # log(.01 / .99): regions start as background (focal loss)
            for linear in (module.region, module.token):
                init.eye_(linear.weight)
                init.zeros_(linear.bias)

    def set_adapters(self, used: bool) -> None:
        """Switch F and F~ on (phase 2 and after) or off (phase 1)."""
        self.config.adapters = used

    def add_likeness(self, seed: int = 0) -> None:
        """Give the model a likeness head, if it has none (before phase 1)."""
        if self.likeness_head is None:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                self.likeness_head = LikenessHead(self.config.d_model)
            self.config.likeness = True

    def set_region_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Standardise region vectors (REGION,): channels of different maps differ in scale by an order of magnitude."""
        self.region_mean.copy_(mean)
        self.region_std.copy_(std.clamp(min=1e-3))

    # ---- the cut -------------------------------------------------------------------------------------------------
    def encode_image(self, images: np.ndarray) -> Tensor:
        """(B, 64, 64, 3) uint8 -> packed frozen features (B, PACKED) float16; no query inside: compute once, store."""
        return image_features(images)

    def encode_query(self, images: np.ndarray | None, boxes, names: Sequence[str | None]) -> Prompt:
        """One phrase per query: its class name (or None) and the exemplar in box xyxy px of its image (or no
        images)."""
        vectors = [None] * len(names)
        if images is not None:
            vectors = region_vectors(image_features(images), boxes)
        return build_prompt([[Phrase(name, vector)] for name, vector in zip(names, vectors)])

    def _project_image(self, features: Tensor) -> Tensor:
        """Packed features -> image tokens (B, S, d)."""
        maps = zip(self.model.input_proj_vision, unpack(features))
        return torch.cat([project(level).flatten(2).transpose(1, 2) for project, level in maps], 1)

    def match(self, features: Tensor, prompt: Prompt, adapted: bool | None = None) -> Match:
        """Packed features (B, PACKED) and B prompts -> boxes and token logits.

        Fusion encoder, language-guided selection, decoder; `adapted` overrides whether the head uses F and F~.
        """
        present, shapes = prompt.present, [(side, side) for _, side in LEVELS]
        vision = self._project_image(features)
        where = self._where(shapes).expand(len(vision), -1, -1)
        fused = len(shapes) - self.config.fused_levels
        fine = sum(h * w for h, w in shapes[:fused])
        text_where = encode_sinusoidal_position_embedding(positions(prompt)[..., None].float(), self.config.d_model)
        encoded = self.model.encoder(
            vision_features=vision[:, fine:],
            vision_position_embedding=where[:, fine:],
            vision_attention_mask=torch.zeros(vision[:, fine:].shape[:2], dtype=torch.bool),
            text_features=self._query_tokens(prompt),
            text_attention_mask=~present,
            text_self_attention_masks=~phrase_attention(prompt),
            text_position_embedding=text_where,
            **_geometry(shapes[fused:], vision),
        )
        tokens = encoded.last_hidden_state_text
        first_logits, first_boxes = self._first_stage(encoded.last_hidden_state_vision, tokens, present, shapes[fused:])
        start = self._select(first_logits, first_boxes)
        memory = torch.cat([vision[:, :fine] + where[:, :fine], encoded.last_hidden_state_vision], 1)
        decoded = self.model.decoder(
            inputs_embeds=self.model.query_position_embeddings.weight.expand(len(features), -1, -1),
            vision_encoder_hidden_states=memory,
            vision_encoder_attention_mask=None,
            text_encoder_hidden_states=tokens,
            text_encoder_attention_mask=~present,
            reference_points=start,
            **_geometry(shapes, vision),
        )
        hidden = decoded.intermediate_hidden_states
        before = torch.cat([start[:, None], decoded.intermediate_reference_points[:, :-1]], 1)
        if not self.training:  # the earlier layers' answers are for their losses only
            hidden, before = hidden[:, -1:], before[:, -1:]
        boxes = (self.bbox_embed[0](hidden) + torch.special.logit(before, eps=1e-5)).sigmoid()
        adapted = self.config.adapters if adapted is None else adapted
        likeness = self._likeness(features, boxes, prompt)
        logits = self.score_head(hidden, tokens, present, adapted) + likeness
        return Match(
            boxes.float(), logits.float(), first_boxes.float(), first_logits.float(), hidden[:, -1], tokens, present,
            likeness[:, -1],
        )

    def forward(self, images: np.ndarray, prompt: Prompt) -> Match:
        """Pictures (B, 64, 64, 3) uint8 and a prompt for each."""
        return self.match(self.encode_image(images), prompt)

    # ---- its parts -----------------------------------------------------------------------------------------------
    def _query_tokens(self, prompt: Prompt) -> Tensor:
        """Project text and exemplar tokens to the common width (B, T, d)."""
        is_exemplar = (prompt.kind == EXEMPLAR)[..., None]
        exemplar = (prompt.exemplar - self.region_mean) / self.region_std
        return torch.where(is_exemplar, self.exemplar_projection(exemplar), self.model.text_projection(prompt.text))

    def _likeness(self, features: Tensor, boxes: Tensor, prompt: Prompt) -> Tensor:
        """What the likeness head says of the boxes (B, L, N, 4) cxcywh in [0, 1] of every layer: (B, L, N, T)."""
        if self.likeness_head is None:
            return boxes.new_zeros(*boxes.shape[:3], prompt.kind.shape[1])
        centre, half = boxes.detach().float().split(2, -1)
        corners = torch.cat([centre - half / 2, centre + half / 2], -1).clamp(0, 1) * IMAGE_SIZE
        regions = region_vectors(features, corners.flatten(1, 2)).unflatten(1, boxes.shape[1:3])
        standard = [(v - self.region_mean) / self.region_std for v in (regions, prompt.exemplar)]
        return self.likeness_head(*standard, prompt.kind == EXEMPLAR)

    def _where(self, shapes: list[tuple[int, int]]) -> Tensor:
        """Sine position plus level embedding (1, S, d)."""
        masks = [torch.ones(1, *side, dtype=torch.long) for side in shapes]
        sine = [self.model.backbone.position_embedding(mask, mask) for mask in masks]
        return torch.cat([p.flatten(2).transpose(1, 2) + e for p, e in zip(sine, self.model.level_embed)], 1)

    def _first_stage(self, memory, tokens, present, shapes) -> tuple[Tensor, Tensor]:
        """A token logit row and a box for every image position (B, S, T), (B, S, 4): trained by the encoder loss."""
        objects, proposals = self.model.generate_encoder_output_proposals(
            memory, torch.zeros(memory.shape[:2], dtype=torch.bool), shapes
        )
        head: MMGroundingDinoContrastiveEmbedding = self.model.encoder_output_class_embed
        logits = objects @ tokens.transpose(1, 2) * objects.shape[-1] ** -0.5 + head.bias
        boxes = (self.model.encoder_output_bbox_embed(objects) + proposals).sigmoid()
        return logits.masked_fill(~present[:, None], ABSENT), boxes

    def _select(self, logits: Tensor, boxes: Tensor) -> Tensor:
        """Language-guided selection: boxes (B, N, 4) of the positions with the strongest token, detached."""
        best = logits.max(-1).values.topk(self.config.num_queries, 1).indices
        return boxes.gather(1, best[..., None].expand(-1, -1, 4)).detach()


def _geometry(shapes: list[tuple[int, int]], like: Tensor) -> dict:
    """What deformable attention wants to know about the maps; no picture is padded here."""
    spatial = torch.tensor(shapes)
    return dict(
        spatial_shapes=spatial,
        spatial_shapes_list=shapes,
        valid_ratios=like.new_ones(len(like), len(shapes), 2),
        level_start_index=torch.cat([spatial.new_zeros(1), spatial.prod(1).cumsum(0)[:-1]]),
    )


def save_detector(model: AttributionGroundingDinoForObjectDetection, folder: str | Path) -> Path:
    """Write config.json and float16 model.safetensors (no frozen backbone in them) and put the folder in place at
    once."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        copy.deepcopy(model).half().save_pretrained(Path(temporary) / "model")
        return publish(Path(temporary) / "model", folder)


def load_detector(folder: str | Path) -> AttributionGroundingDinoForObjectDetection:
    """A saved detector in float32 and evaluation mode, from a local folder only."""
    for name in ("config.json", "model.safetensors"):
        if not (Path(folder) / name).is_file():
            raise FileError(
                f"{Path(folder) / name}: no such file; restore the shipped model or run its notebook in pretrain/"
            )
    model = AttributionGroundingDinoForObjectDetection.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32
    )
    return model.eval()
