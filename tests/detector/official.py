"""GroundingDINO as its authors wrote it (`groundingdino-py`) with seeded random weights, and the paper's exemplar path written
a second time, slowly: what the product is compared with."""

import importlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel, SwinConfig

from ard.backbones import wordpieces
from ard.detector.published import AttributionDetectorConfig

# groundingdino-py has a width of 256 written into its position embeddings
SMALL = dict(d_model=256, encoder_layers=2, decoder_layers=3, encoder_attention_heads=8, decoder_attention_heads=8,
             encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=12)
SMALL_SWIN = dict(embed_dim=16, depths=[1, 2, 2, 1], num_heads=[1, 2, 2, 4], window_size=4)
SMALL_BERT = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)


def small_config(**changes) -> AttributionDetectorConfig:
    swin = SwinConfig(**SMALL_SWIN, image_size=64, out_indices=[2, 3, 4])
    return AttributionDetectorConfig(backbone_config=swin, text_config=BertConfig(**SMALL_BERT), **{**SMALL, **changes})


class Bert(nn.Module):
    """In the place of `BertModelWarper`, which calls methods that transformers 5 no longer has; same parameter names."""

    def __init__(self, bert_model: BertModel):
        super().__init__()
        self.embeddings, self.encoder, self.pooler = bert_model.embeddings, bert_model.encoder, bert_model.pooler
        self.config = bert_model.config
        object.__setattr__(self, "whole", bert_model)  # not a submodule: its parameters are those above

    def forward(self, input_ids, token_type_ids, attention_mask, position_ids):
        seen = attention_mask[:, None] if attention_mask.dim() == 3 else attention_mask
        return {"last_hidden_state": self.whole(input_ids, attention_mask=seen, token_type_ids=token_type_ids,
                                                position_ids=position_ids).last_hidden_state}


def official_model(config: AttributionDetectorConfig, folder: Path, monkeypatch, seed: int = 0) -> nn.Module:
    """GroundingDINO of `groundingdino-py` at the sizes of `config`, every parameter shaken so that each part matters."""
    from groundingdino.models import build_model
    from groundingdino.models.GroundingDINO.backbone import backbone, swin_transformer
    from groundingdino.util.slconfig import SLConfig

    main = importlib.import_module("groundingdino.models.GroundingDINO.groundingdino")
    monkeypatch.setattr(main, "BertModelWarper", Bert)
    torch.manual_seed(seed)
    BertModel(config.text_config).save_pretrained(folder)
    wordpieces().save_pretrained(folder)
    swin = config.backbone_config

    def build_swin(name, pretrain_img_size, **settings):
        return swin_transformer.SwinTransformer(
            pretrain_img_size=pretrain_img_size, embed_dim=swin.embed_dim, depths=swin.depths, num_heads=swin.num_heads,
            window_size=swin.window_size, out_indices=settings["out_indices"], use_checkpoint=False)

    monkeypatch.setattr(backbone, "build_swin_transformer", build_swin)
    args = SLConfig.fromfile(Path(main.__file__).parents[2] / "config/GroundingDINO_SwinT_OGC.py")
    for name, value in dict(
        text_encoder_type=str(folder), hidden_dim=config.d_model, nheads=config.encoder_attention_heads,
        dim_feedforward=config.encoder_ffn_dim, enc_layers=config.encoder_layers, dec_layers=config.decoder_layers,
        num_queries=config.num_queries, use_checkpoint=False, use_transformer_ckpt=False,
    ).items():
        setattr(args, name, value)
    model = build_model(args).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
            if ".gamma_" in name:
                parameter.add_(0.3)
    return model


@torch.no_grad()
def official_answer(model: nn.Module, pictures, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, N, 4) boxes cxcywh in [0, 1] and (B, N, T) token logits of padded pictures and captions such as "cat . dog ."."""
    from groundingdino.util.misc import NestedTensor

    found = model(NestedTensor(pictures.pixels, ~pictures.mask), captions=captions)
    return found["pred_boxes"], found["pred_logits"]


def slow_exemplar_token(maps, projection: nn.Conv2d, box, stride: int = 8, grid: int = 64) -> torch.Tensor:
    """(d,) the exemplar token of a box xyxy pixels by dense sampling: every map is read bilinearly, as if it had been
    upsampled with its corners aligned to the finest, at the middles of the cells that RoIAlign samples.

    RoIAlign with one cell samples a regular grid of ceil(side) points a side; here each is read by hand.
    """
    weight, bias = projection.weight[:, :, 0, 0], projection.bias
    height, width = maps[0].shape[-2:]
    spread = torch.cat([F.interpolate(m[None], (height, width), mode="bilinear", align_corners=True)[0] for m in maps])
    x0, y0, x1, y1 = (float(v) / stride - 0.5 for v in box)
    columns, rows = max(-(-(x1 - x0) // 1), 1), max(-(-(y1 - y0) // 1), 1)
    total = torch.zeros(len(weight))
    for r in range(int(rows)):
        for c in range(int(columns)):
            y, x = y0 + (r + 0.5) * (y1 - y0) / rows, x0 + (c + 0.5) * (x1 - x0) / columns
            y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
            top, left = min(int(y), height - 2), min(int(x), width - 2)
            dy, dx = y - top, x - left
            read = ((1 - dy) * (1 - dx) * spread[:, top, left] + (1 - dy) * dx * spread[:, top, left + 1]
                    + dy * (1 - dx) * spread[:, top + 1, left] + dy * dx * spread[:, top + 1, left + 1])
            total += weight @ read + bias
    return total / (rows * columns)
