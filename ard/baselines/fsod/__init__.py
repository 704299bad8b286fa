"""The few-shot detectors the paper compares with, at the mini world's scale: rows VFA and ICPE (paper, section 5)."""

from ard.baselines.fsod.rows import ENTRIES

__all__ = ["ENTRIES"]
