"""Official checkpoints to our detector and back: GroundingDINO (`groundingdino_swint_ogc.pth`, `groundingdino_swinb_cogcoor.pth`)
and CountGD (`checkpoint_fsc147_best.pth`), which is GroundingDINO with an exemplar projection (FACTS 2).

The key map is proved against `groundingdino-py` with the same random weights: tests/detector/test_convert.py.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GroundingDinoForObjectDetection

from ard.detector.published import AttributionDetector, AttributionDetectorConfig
from ard.files import FileError

# ours -> official, applied in this order to every name
RENAMED = [(re.compile(ours), official) for ours, official in (
    (r"^model\.backbone\.conv_encoder\.model\.hidden_states_norms\.stage(\d)\.", lambda m: f"backbone.0.norm{int(m[1]) - 1}."),
    (r"^model\.backbone\.conv_encoder\.model\.swin\.embeddings\.patch_embeddings\.projection\.", "backbone.0.patch_embed.proj."),
    (r"^model\.backbone\.conv_encoder\.model\.swin\.embeddings\.norm\.", "backbone.0.patch_embed.norm."),
    (r"^model\.backbone\.conv_encoder\.model\.swin\.encoder\.", "backbone.0."),
    (r"^(backbone\..*)\.attention\.relative_position_bias\.", r"\1.attn."),
    (r"^(backbone\..*)\.attention\.([qkv])_proj\.", r"\1.attn.qkv.\2."),
    (r"^(backbone\..*)\.attention\.o_proj\.", r"\1.attn.proj."),
    (r"^(backbone\..*)\.layernorm_before\.", r"\1.norm1."),
    (r"^(backbone\..*)\.layernorm_after\.", r"\1.norm2."),
    (r"^model\.text_backbone\.", "bert."),
    (r"^model\.text_projection\.", "feat_map."),
    (r"^model\.input_proj_vision\.", "input_proj."),
    (r"^model\.query_position_embeddings\.", "transformer.tgt_embed."),
    (r"^model\.encoder_output_bbox_embed\.", "transformer.enc_out_bbox_embed."),
    (r"^model\.encoder\.layers\.(\d+)\.fusion_layer\.", r"transformer.encoder.fusion_layers.\1."),
    (r"^model\.encoder\.layers\.(\d+)\.text_enhancer_layer\.", r"transformer.encoder.text_layers.\1."),
    (r"^model\.encoder\.layers\.(\d+)\.deformable_layer\.", r"transformer.encoder.layers.\1."),
    (r"^model\.decoder\.bbox_embed\.0\.", "bbox_embed.0."),
    (r"^model\.decoder\.layer_norm\.", "transformer.decoder.norm."),
    (r"^model\.decoder\.reference_points_head\.", "transformer.decoder.ref_point_head."),
    (r"^model\.", "transformer."),
    (r"^exemplar_projection\.", "feature_map_proj."),
    (r"(fusion_layers\..*)\.values_vision_proj\.", r"\1.values_v_proj."),
    (r"(fusion_layers\..*)\.values_text_proj\.", r"\1.values_l_proj."),
    (r"(fusion_layers\..*)\.out_vision_proj\.", r"\1.out_v_proj."),
    (r"(fusion_layers\..*)\.out_text_proj\.", r"\1.out_l_proj."),
    (r"(fusion_layers\..*)\.vision_proj\.", r"\1.v_proj."),
    (r"(fusion_layers\..*)\.text_proj\.", r"\1.l_proj."),
    (r"(fusion_layers\..*)\.layer_norm_vision\.", r"\1.layer_norm_v."),
    (r"(fusion_layers\..*)\.layer_norm_text\.", r"\1.layer_norm_l."),
    (r"(fusion_layers\..*)\.vision_param$", r"\1.gamma_v"),
    (r"(fusion_layers\..*)\.text_param$", r"\1.gamma_l"),
    (r"(text_layers\..*)\.layer_norm_before\.", r"\1.norm1."),
    (r"(text_layers\..*)\.layer_norm_after\.", r"\1.norm2."),
    (r"(decoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm2."),
    (r"(decoder\.layers\.\d+)\.encoder_attn_text_layer_norm\.", r"\1.catext_norm."),
    (r"(decoder\.layers\.\d+)\.encoder_attn_layer_norm\.", r"\1.norm1."),
    (r"(decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm3."),
    (r"(decoder\.layers\.\d+)\.encoder_attn_text\.", r"\1.ca_text."),
    (r"(decoder\.layers\.\d+)\.encoder_attn\.", r"\1.cross_attn."),
    (r"(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"(encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"(transformer\..*)\.fc([12])\.", r"\1.linear\2."),
    (r"((?:text_layers|decoder\.layers)\..*)\.(query|key|value)\.(weight|bias)$", r"\1.in_proj_\3.\2"),
    (r"(attn\.qkv)\.([qkv])\.(weight|bias)$", r"\1.\3.\2"),
)]
THIRDS = {"q": 0, "k": 1, "v": 2, "query": 0, "key": 1, "value": 2}  # official attention keeps three matrices in one
FRESH = ("score_head.",)  # ours alone: F and F~ start as the identity
BOX_HEAD = "bbox_embed.0."  # shared by all decoder layers; official files repeat it under other names
IDLE = re.compile(r"\.swin\.layernorm\.")  # transformers builds it, nothing reads it


class Conversion(NamedTuple):
    """A detector, and what did not come from or go into it, by name."""

    detector: AttributionDetector
    fresh: tuple[str, ...]  # parameters of ours that the checkpoint does not have: as they were initialised
    unused: tuple[str, ...]  # tensors of the checkpoint that the detector does not need


def official_name(ours: str) -> tuple[str, int | None]:
    """The official name of one of our parameters, and which third of it when attention matrices are kept in one.

    >>> official_name("model.decoder.layers.3.self_attn.key.weight")
    ('transformer.decoder.layers.3.self_attn.in_proj_weight', 1)
    """
    name = ours
    for pattern, replacement in RENAMED:
        name = pattern.sub(replacement, name)
    head, _, last = name.rpartition(".")
    fused = last in THIRDS and (".in_proj_" in head or ".attn.qkv." in head)
    return (head, THIRDS[last]) if fused else (name, None)


def read_official(path: str | Path) -> dict[str, Tensor]:
    """The tensors of an official checkpoint, without a wrapping "model" and without "module." before names.

    Loaded with `weights_only=True`. Raises FileError for a file that is missing or holds something else.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # CountGD keeps its command line beside the weights
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileError(f"{path}: no such file") from None
    except Exception as error:  # torch raises many kinds for torn files and for pickled objects
        raise FileError(f"{path}: not a checkpoint of tensors ({str(error).splitlines()[0]})") from None
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise FileError(f"{path}: expected a dictionary of tensors, alone or under 'model'")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def from_official(state: Mapping[str, Tensor], config: AttributionDetectorConfig) -> Conversion:
    """A detector with the weights of GroundingDINO or CountGD.

    A GroundingDINO checkpoint has no exemplar projection: that is listed as fresh. Raises FileError when any other tensor is
    missing or of another shape, all of them named, or when the layers' box heads differ.
    """
    detector = AttributionDetector(config)
    wanted, made, used, bad, fresh = _wanted(detector), {}, set(), [], []
    no_exemplars = not any(name.startswith("feature_map_proj.") for name in state)
    for ours, shape in wanted.items():
        official, third = official_name(ours)
        if ours.startswith(FRESH) or no_exemplars and ours.startswith("exemplar_projection."):
            fresh.append(ours)
            continue
        used.add(official)
        tensor = state.get(official)
        if tensor is None:
            bad.append(f"{official} is missing")
            continue
        part = tensor if third is None else tensor[third * len(tensor) // 3 : (third + 1) * len(tensor) // 3]
        if part.shape != shape:
            bad.append(f"{official}: expected {_shape(shape, third)}, found {tuple(tensor.shape)}")
        made[ours] = part
    for copy, original in _box_heads(state).items():
        used.add(copy)
        if original in state and not torch.equal(state[copy], state[original]):
            bad.append(f"{copy} differs from {original}: box heads that are not shared are not supported")
    if bad:
        raise FileError(f"the checkpoint does not fit the configuration: {'; '.join(sorted(set(bad)))}")
    detector.load_state_dict(made, strict=False)
    return Conversion(detector.eval(), tuple(fresh), tuple(sorted(set(state) - used)))


def to_official(detector: AttributionDetector, exemplars: bool = True) -> dict[str, Tensor]:
    """The detector's weights under official names: CountGD's layout, or GroundingDINO's without `exemplars`.

    F and F~ have no place in either and must be the identity; ValueError otherwise. BERT's pooler, which nothing reads, is not
    written.
    """
    head, units = detector.score_head, torch.eye(detector.config.d_model)
    if not all(torch.equal(adapter(units), units) for adapter in (head.region, head.token)):
        raise ValueError("F and F~ are not the identity: official layouts cannot hold them")
    state, mine = {}, detector.state_dict()
    for ours in _wanted(detector):
        official, third = official_name(ours)
        if ours.startswith(FRESH) or not exemplars and ours.startswith("exemplar_projection."):
            continue
        state.setdefault(official, []).append((third or 0, mine[ours].detach().clone()))
    flat = {name: torch.cat([t for _, t in sorted(parts, key=lambda p: p[0])]) if len(parts) > 1 else parts[0][1]
            for name, parts in state.items()}
    layers = range(detector.config.decoder_layers)
    for name in [n for n in flat if n.startswith(BOX_HEAD)]:
        rest = name.removeprefix(BOX_HEAD)
        flat.update({f"{at}bbox_embed.{i}.{rest}": flat[name] for at in ("", "transformer.decoder.") for i in layers})
    return flat


def from_grounding_dino(name: str | Path, **changes) -> Conversion:
    """A detector with the weights of transformers' Grounding DINO, from a folder or by hub name
    ("IDEA-Research/grounding-dino-base"); `changes` go over its configuration."""
    source = GroundingDinoForObjectDetection.from_pretrained(name, dtype=torch.float32)
    known = {k: v for k, v in source.config.to_dict().items() if k not in ("backbone_config", "text_config", "model_type",
             "architectures", "transformers_version")}
    config = AttributionDetectorConfig(backbone_config=source.config.backbone_config, text_config=source.config.text_config,
                                       **{**known, **changes})
    detector, state = AttributionDetector(config), source.state_dict()
    wanted = _wanted(detector)
    missing = [n for n in wanted if n not in state and not n.startswith((*FRESH, "exemplar_projection."))]
    if missing:
        raise FileError(f"{name}: no {', '.join(missing[:5])}")
    detector.load_state_dict({n: state[n] for n in wanted if n in state}, strict=False)
    fresh = tuple(n for n in wanted if n not in state)
    return Conversion(detector.eval(), fresh, tuple(sorted(n for n in state if n not in detector.state_dict())))


def _wanted(detector: AttributionDetector) -> dict[str, torch.Size]:
    """Name and shape of every parameter once; a query backbone of its own has no place in official files."""
    if detector.query_backbone is not None:
        raise ValueError("shared_vision is off: official checkpoints have one backbone")
    return {name: p.shape for name, p in detector.named_parameters() if not IDLE.search(name)}


def _box_heads(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Copies of the box head in an official file -> the name of the first."""
    pattern = re.compile(r"^(?:transformer\.decoder\.)?bbox_embed\.\d+\.(.*)")
    found = {name: pattern.match(name) for name in state}
    return {name: BOX_HEAD + match[1] for name, match in found.items() if match and not name.startswith(BOX_HEAD)}


def _shape(shape: torch.Size, third: int | None) -> tuple[int, ...]:
    return tuple(shape) if third is None else (3 * shape[0], *shape[1:])
