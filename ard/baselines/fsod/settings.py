"""Settings of the two few-shot detectors: base training, and what is done for each query."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FewShotSettings:
    """Published values are of VFA / ICPE on VOC, and of the paper's own runs of VFA (FACTS 1.10) where they differ."""

    scenes: int = 3000  # base scenes rendered for base training; published: VOC's 16,551 pictures
    width: int = 128  # channels of the map that RoIs are cut from; published 1024
    vector: int = 192  # channels of a RoI or support vector; published 2048
    roi_side: int = 4  # cells a side that a RoI is aligned to; published 14
    proposals: int = 48  # boxes kept of a picture's proposals; published 300 in testing
    rois: int = 32  # RoIs of a picture trained on; published 128
    positive_share: float = 0.25  # of them that overlap an object by an IoU of .5; as published
    kl_weight: float = 2.5e-4  # of the divergence in VFA's loss; as published
    steps: int = 1500  # of base training; published 18,000 / 252,000, the paper's own runs 1,800
    batch: int = 8  # pictures a step; published 32 / 2
    learning_rate: float = 1e-3  # AdamW, warm-up and cosine; published SGD .02 / .005
    warmup: int = 50  # steps of linear warm-up; the paper's own runs 10
    weight_decay: float = 1e-4  # as published
    base_shots: int = 1  # objects of each base class shown in fine-tuning, and their supports; as published for 1 shot
    tune_steps: int = 400  # of fine-tuning for a query; published 400 / 2,000
    tune_rate: float = 1e-3  # SGD with momentum .9 in fine-tuning; published .001 / .005
    binary_rate: float = 1e-2  # the same for the binary head, which is all new; not published
    tune_clip: float = 1.0  # gradient norm in fine-tuning; the paper's own runs 1
    threshold: float = 0.05  # a weaker detection counts as none; as published
    seed: int = 0  # of scenes, weights, batches and fine-tuning
