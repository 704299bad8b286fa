"""The published detector with late fusion: its first encoder layers see no query, so they run once for each gallery picture
and once for each query, and a pair costs the rest (DESIGN 10 b; not in the paper).

What `ard.detector.variants.fuse_late` asks of the mini detector, cut where image and query first meet.
"""

from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor, nn
from transformers.models.mm_grounding_dino.modeling_mm_grounding_dino import encode_sinusoidal_position_embedding

from ard.detector.joint import Scene, _geometry
from ard.detector.prompts import Prompt, phrase_attention, positions
from ard.detector.published import AttributionDetector, AttributionDetectorConfig, Pictures


class LateFusedConfig(AttributionDetectorConfig):
    """The published settings, and how many encoder layers, the last ones, mix image and query."""

    model_type = "late-fused-attribution-detector"

    fused_layers: int = 1

    @classmethod
    def of(cls, config: AttributionDetectorConfig, fused_layers: int) -> "LateFusedConfig":
        """The settings of `config`, fused in the last layers only."""
        return cls(**{key: value for key, value in config.to_dict().items() if key != "model_type"}, fused_layers=fused_layers)


@dataclass(frozen=True, eq=False)
class Ahead:
    """What the backbone and the layers before the first fusion make of a batch of pictures: compute once, store."""

    scene: Scene

    def __len__(self) -> int:
        return len(self.scene.tokens)

    def __getitem__(self, rows: slice) -> "Ahead":
        return Ahead(Scene(*(part if isinstance(part, list) else part[rows] for part in self.scene)))


class LateFusedDetector(AttributionDetector):
    """`encode_image` and `encode_query` go as far as image and query can go alone; `match` starts where they meet.

    Raises ValueError for a number of fused layers below one or above the encoder's.
    """

    config_class = LateFusedConfig
    config: LateFusedConfig

    def __init__(self, config: LateFusedConfig):
        super().__init__(config)
        layers = self.model.encoder.layers
        if not 1 <= config.fused_layers <= len(layers):
            raise ValueError(f"fused_layers: expected 1 to {len(layers)}, found {config.fused_layers}")
        self.ahead, self.model.encoder.layers = layers[: -config.fused_layers], layers[-config.fused_layers :]
        for layer in self.ahead:
            layer.fusion_layer = nn.Identity()  # nothing is mixed there, and no weights are kept for it

    def encode_image(self, pictures: Pictures) -> Ahead:
        """Gallery pictures through I_1 and the image's side of the layers ahead."""
        scene = super()._scene(super().encode_image(pictures))
        first = len(scene.shapes) - self.config.fused_levels
        fine = sum(h * w for h, w in scene.shapes[:first])
        tokens, place = scene.tokens[:, fine:], _geometry(scene, first)
        points = self.model.encoder.get_reference_points(scene.shapes[first:], place.pop("valid_ratios"), tokens.device)
        for layer in self.ahead:
            tokens, _ = layer.deformable_layer(
                hidden_states=tokens,
                attention_mask=~scene.padding[:, fine:],
                position_embeddings=scene.where[:, fine:],
                reference_points=points,
                **place,
            )
        return Ahead(scene._replace(tokens=torch.cat([scene.tokens[:, :fine], tokens], 1)))

    def prompt(self, prompts: Sequence) -> Prompt:
        """Captions whose `text` holds all tokens at the common width, behind the query's side of the layers ahead."""
        prompt = super().prompt(prompts)
        tokens = super()._query_tokens(prompt)
        where = encode_sinusoidal_position_embedding(positions(prompt)[..., None].float(), self.config.d_model)
        for layer in self.ahead:
            tokens, _ = layer.text_enhancer_layer(
                hidden_states=tokens, attention_masks=phrase_attention(prompt), position_embeddings=where
            )
        return prompt._replace(text=tokens)

    def _scene(self, ahead: Ahead) -> Scene:
        return ahead.scene

    @staticmethod
    def _query_tokens(prompt: Prompt) -> Tensor:
        return prompt.text
