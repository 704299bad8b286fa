"""bfloat16 only where it is wanted and in hardware: emulated it stalls training."""

import pytest
import torch

from ard import precision


@pytest.mark.parametrize("has, wanted", [(True, True), (True, False), (False, True), (False, False)])
def test_it_takes_both_the_wish_and_the_processor(monkeypatch, has, wanted):
    monkeypatch.setattr(precision, "computes_bfloat16", lambda device: has)
    with precision.bfloat16("cpu", wanted):
        made = torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2))
    assert made.dtype == (torch.bfloat16 if has and wanted else torch.float32)


@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True)])
def test_either_instruction_set_is_enough(monkeypatch, flags):
    for name, value in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), flags):
        monkeypatch.setattr(torch.cpu, name, lambda value=value: value)
    assert precision.computes_bfloat16() == any(flags)
