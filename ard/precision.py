"""Where bfloat16 is worth having: a processor without instructions for it took 35 times as long for a convolution as in
float32, 80 times for a linear layer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def computes_bfloat16(device: str = "cpu") -> bool:
    """Whether a device, named as torch names it, multiplies bfloat16 in hardware: AVX512-BF16 or AMX, or such a GPU."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def bfloat16(device: str = "cpu", wanted: bool = True) -> AbstractContextManager:
    """Within the block torch multiplies in bfloat16, where that is wanted and the device has it; else in float32."""
    if wanted and computes_bfloat16(device):
        return torch.autocast(device.split(":")[0], torch.bfloat16)
    return nullcontext()
