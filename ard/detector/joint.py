"""The joint part of the detector: image tokens of a scene and the tokens of a prompt in, boxes and token logits out.

transformers' MM Grounding DINO cut open between its backbones and its fusion encoder (DESIGN 7; FACTS 1.2). What comes
before is a front end: `ard.detector.model` for the mini world, `ard.detector.published` for Swin and BERT.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import MMGroundingDinoForObjectDetection
from transformers import initialization as init
from transformers.models.mm_grounding_dino.modeling_mm_grounding_dino import (
    MMGroundingDinoEncoder,
    MMGroundingDinoFusionLayer,
    encode_sinusoidal_position_embedding,
)

from ard.detector.prompts import Prompt, phrase_attention, positions
from ard.detector.score_head import ABSENT, LinearAdapter, ScoreHead, ZeroLinear, token_logits

class Scene(NamedTuple):
    """S image tokens of L maps, the finest first, and where they stand."""

    tokens: Tensor  # (B, S, d) projected maps
    where: Tensor  # (B, S, d) sine position plus level embedding
    padding: Tensor  # (B, S) bool: no picture there
    shapes: list[tuple[int, int]]  # height and width of each map
    valid: Tensor  # (B, L, 2) share of each map's width and height that is picture
    pixels: Tensor  # (B, 2) width and height of the picture, without padding


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

    pixels: Tensor  # (B, 2) width and height of each picture

    @property
    def logits(self) -> Tensor:
        """(B, N, T)."""
        return self.layer_logits[:, -1]

    @property
    def boxes(self) -> Tensor:
        """(B, N, 4) xyxy pixels, clipped to the picture."""
        centre, half = self.layer_boxes[:, -1].split(2, -1)
        half = half / 2
        return torch.cat([centre - half, centre + half], -1).clamp(0, 1) * self.pixels.repeat(1, 2)[:, None]


class JointDetector(MMGroundingDinoForObjectDetection, ABC):
    """Fusion encoder, language-guided selection, decoder and F . F~. A front end gives the three abstract methods."""

    _tied_weights_keys = {r"bbox_embed.(?![0])\d+": r"bbox_embed.0", "model.decoder.bbox_embed": "bbox_embed"}

    def __init__(self, config):
        super().__init__(config)
        coarse = copy.deepcopy(config)
        coarse.num_feature_levels = config.fused_levels
        self.model.encoder = MMGroundingDinoEncoder(coarse)
        self.class_embed = None
        self.model.decoder.class_embed = None
        if not config.scaled_logits:
            self.model.encoder_output_class_embed = None
        self.exemplar_projection = self._new_exemplar_projection(config)
        self.score_head = ScoreHead(config.d_model, config.scaled_logits, config.adapter)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, MMGroundingDinoFusionLayer):
            init.constant_(module.vision_param, self.config.fusion_scale)
            init.constant_(module.text_param, self.config.fusion_scale)
        elif isinstance(module, LinearAdapter):
            init.eye_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ScoreHead) and module.bias is not None:
            init.constant_(module.bias, -4.6)  # log(.01 / .99): regions start as background (focal loss)

    def set_adapters(self, used: bool) -> None:
        """Switch F and F~ on (phase 2 and after) or off (phase 1)."""
        self.config.adapters = used

    def renew_adapters(self, kind: str) -> None:
        """F and F~ of another kind (before phase 2), each starting as the identity; nothing changes where the kind is the same."""
        if kind != self.config.adapter:
            self.config.adapter, bias = kind, self.score_head.bias
            self.score_head = ScoreHead(self.config.d_model, self.config.scaled_logits, kind)
            self.score_head.bias = bias

    def match(self, features, prompt: Prompt, adapted: bool | None = None) -> Match:
        """What `encode_image` gave of B pictures and B prompts -> boxes and token logits.

        Fusion encoder, language-guided selection, decoder; `adapted` overrides whether the head uses F and F~.
        """
        scene, present = self._scene(features), prompt.present
        fused = len(scene.shapes) - self.config.fused_levels
        fine = sum(h * w for h, w in scene.shapes[:fused])
        text_where = encode_sinusoidal_position_embedding(positions(prompt)[..., None].float(), self.config.d_model)
        encoded = self.model.encoder(
            vision_features=scene.tokens[:, fine:],
            vision_position_embedding=scene.where[:, fine:],
            vision_attention_mask=scene.padding[:, fine:],
            text_features=self._query_tokens(prompt),
            text_attention_mask=~present,
            text_self_attention_masks=~phrase_attention(prompt),
            text_position_embedding=text_where,
            **_geometry(scene, fused),
        )
        tokens = encoded.last_hidden_state_text
        first_logits, first_boxes = self._first_stage(encoded.last_hidden_state_vision, tokens, present, scene, fused)
        start = self._select(first_logits, first_boxes)
        memory = torch.cat([scene.tokens[:, :fine] + scene.where[:, :fine], encoded.last_hidden_state_vision], 1)
        hidden, before = self._decode(start, memory, tokens, present, scene)
        if not self.training:  # the earlier layers' answers are for their losses only
            hidden, before = hidden[:, -1:], before[:, -1:]
        boxes = (self.bbox_embed[0](hidden) + self._unsigmoid(before)).sigmoid()
        adapted = self.config.adapters if adapted is None else adapted
        likeness = self._likeness(features, boxes, prompt)
        logits = self.score_head(hidden, tokens, present, adapted) + likeness
        return Match(
            boxes.float(), logits.float(), first_boxes.float(), first_logits.float(), hidden[:, -1], tokens, present,
            likeness[:, -1], scene.pixels,
        )

    # ---- what a front end gives ----------------------------------------------------------------------------------
    @abstractmethod
    def _new_exemplar_projection(self, config) -> nn.Module:
        """What brings exemplars to the common width."""

    @abstractmethod
    def _scene(self, features) -> Scene:
        """Image tokens of what `encode_image` gave."""

    @abstractmethod
    def _query_tokens(self, prompt: Prompt) -> Tensor:
        """Text and exemplar tokens at the common width (B, T, d)."""

    def _likeness(self, features, boxes: Tensor, prompt: Prompt) -> Tensor:
        """What is added to the logits of boxes (B, L, N, 4) cxcywh in [0, 1] of every layer: (B, L, N, T); here 0."""
        return boxes.new_zeros(*boxes.shape[:3], prompt.kind.shape[1])

    @staticmethod
    def _unsigmoid(boxes: Tensor) -> Tensor:
        """The inverse of the sigmoid, finite at 0 and 1."""
        return torch.special.logit(boxes, eps=1e-5)

    # ---- its parts -----------------------------------------------------------------------------------------------
    def _first_stage(self, memory: Tensor, tokens: Tensor, present: Tensor, scene: Scene, fused: int):
        """A token logit row and a box for every image position (B, S, T), (B, S, 4): trained by the encoder loss."""
        objects, proposals = self.model.generate_encoder_output_proposals(
            memory, scene.padding[:, -memory.shape[1] :], scene.shapes[fused:]
        )
        head = self.model.encoder_output_class_embed
        logits = token_logits(objects, tokens, None if head is None else head.bias)
        boxes = (self.model.encoder_output_bbox_embed(objects) + proposals).sigmoid()
        return logits.masked_fill(~present[:, None], ABSENT), boxes

    def _select(self, logits: Tensor, boxes: Tensor) -> Tensor:
        """Language-guided selection: boxes (B, N, 4) of the positions with the strongest token, detached."""
        best = logits.max(-1).values.topk(self.config.num_queries, 1).indices
        return boxes.gather(1, best[..., None].expand(-1, -1, 4)).detach()

    def _decode(self, start: Tensor, memory: Tensor, tokens: Tensor, present: Tensor, scene: Scene) -> tuple[Tensor, Tensor]:
        """All decoder layers from the boxes `start` (B, N, 4): their hidden states (B, L, N, d), and the boxes (B, L, N, 4)
        that each layer looked at."""
        decoder, boxes, states, before = self.model.decoder, start, [], []
        hidden = self.model.query_position_embeddings.weight.expand(len(memory), -1, -1)
        hide = (~present)[:, None, None, :].to(tokens.dtype) * torch.finfo(tokens.dtype).min
        for layer, head in zip(decoder.layers, self.bbox_embed):
            seen = boxes[:, :, None] * torch.cat([scene.valid, scene.valid], -1)[:, None]
            place = encode_sinusoidal_position_embedding(seen[:, :, 0], num_pos_feats=self.config.d_model // 2)
            hidden = layer(
                hidden_states=hidden,
                position_embeddings=decoder.reference_points_head(place),
                reference_points=seen,
                vision_encoder_hidden_states=memory,
                vision_encoder_attention_mask=~scene.padding,
                text_encoder_hidden_states=tokens,
                text_encoder_attention_mask=hide,
                **_levels(scene.shapes, memory.device),
            )[0]
            before.append(boxes)
            states.append(decoder.layer_norm(hidden))
            boxes = (head(hidden) + self._unsigmoid(boxes)).sigmoid().detach()
        return torch.stack(states, 1), torch.stack(before, 1)


def _geometry(scene: Scene, first: int) -> dict:
    """What the encoder wants to know about the maps from `first` on."""
    return {"valid_ratios": scene.valid[:, first:], **_levels(scene.shapes[first:], scene.tokens.device)}


def _levels(shapes: list[tuple[int, int]], device: torch.device) -> dict:
    """What deformable attention wants to know about the maps."""
    spatial = torch.tensor(shapes, device=device)
    start = torch.cat([spatial.new_zeros(1), spatial.prod(1).cumsum(0)[:-1]])
    return {"spatial_shapes": spatial, "spatial_shapes_list": shapes, "level_start_index": start}
