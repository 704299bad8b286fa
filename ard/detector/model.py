"""The detector at the mini world's size: frozen packed features and MiniLM words before the joint part (FACTS 1.2, 12).

`encode_image` and `encode_query` are frozen and cacheable; `match` is the joint, trainable part. The frozen backbones
stay outside the module, so a saved folder holds trained weights only.
"""

import copy
import tempfile
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig, MMGroundingDinoConfig, ResNetConfig

from ard.detector.features import IMAGE_SIZE, LEVELS, REGION, image_features, region_vectors, unpack
from ard.detector.joint import JointDetector, Match, Scene
from ard.detector.prompts import EXEMPLAR, SCORE_RULES, TEXT_SIZE, Phrase, Prompt, build_prompt
from ard.files import FileError, publish


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
    score_rule: str = "mean"  # how text and exemplar probabilities become one, one of SCORE_RULES
    adapters: bool = False  # F and F~ of the score head in use (after phase 1)
    adapter: str = "linear"  # what they are, a key of score_head.ADAPTERS
    scaled_logits: bool = True  # token logits divided by sqrt(d), with a bias (MM Grounding DINO)
    likeness: bool = False  # regions and exemplars also compared by what is in them (not in the paper)
    calibration: list | None = None  # the numbers of `ard.chances.Chances`, once measured

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
        if self.score_rule not in SCORE_RULES:
            raise ValueError(f"score_rule: expected one of {', '.join(SCORE_RULES)}, found {self.score_rule!r}")
        super().__post_init__(**kwargs)


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


class AttributionGroundingDinoForObjectDetection(JointDetector):
    """One class for three uses: open-set detector, exemplar-prompted detector (CountGD's place) and AR detector."""

    config_class = AttributionConfig
    config: AttributionConfig

    def __init__(self, config: AttributionConfig):
        super().__init__(config)
        self.model.backbone.conv_encoder = None
        self.model.text_backbone = None
        self.register_buffer("region_mean", torch.zeros(REGION))
        self.register_buffer("region_std", torch.ones(REGION))
        self.likeness_head = LikenessHead(config.d_model) if config.likeness else None
        self.post_init()

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

    def forward(self, images: np.ndarray, prompt: Prompt) -> Match:
        """Pictures (B, 64, 64, 3) uint8 and a prompt for each."""
        return self.match(self.encode_image(images), prompt)

    # ---- what the joint part asks for ----------------------------------------------------------------------------
    def _new_exemplar_projection(self, config: AttributionConfig) -> nn.Module:
        return nn.Linear(REGION, config.d_model)

    def _scene(self, features: Tensor) -> Scene:
        """Packed features (B, PACKED): square pictures of one size without padding."""
        maps, shapes = zip(self.model.input_proj_vision, unpack(features)), [(side, side) for _, side in LEVELS]
        tokens = torch.cat([project(level).flatten(2).transpose(1, 2) for project, level in maps], 1)
        return Scene(
            tokens,
            self._where(shapes).expand(len(tokens), -1, -1),
            torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device),
            shapes,
            tokens.new_ones(len(tokens), len(shapes), 2),
            tokens.new_full((len(tokens), 2), IMAGE_SIZE, dtype=torch.float32),
        )

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
