"""The AR detector as an attribution method: `rank(query, gallery)`, with gallery features computed once (DESIGN 7,
8)."""

import numpy as np
import torch
from torch import Tensor

from ard.detector.features import FeatureCache, region_vectors
from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.detector.prompts import Phrase, Prompt, build_prompt
from ard.detector.readings import Readings, read
from ard.records import Attribution, Gallery, Query


class DetectorMethod:
    """Ranks by the class phrase and the exemplar of R_Q. One pass answers for ARD- and ARD (`rank_both`)."""

    def __init__(self, model: AttributionGroundingDinoForObjectDetection, cache: FeatureCache | None = None):
        self.model, self.cache = model, cache or FeatureCache()
        self._gallery: tuple[Gallery | None, Tensor] = (None, torch.empty(0))

    def prompt(self, query: Query) -> Prompt:
        """Class phrase and exemplar token of a query."""
        vector = region_vectors(self.cache(query.image[None]), torch.tensor([query.sample.query_box]))[0]
        return build_prompt([[Phrase(query.sample.class_name, vector)]])

    def rank(self, query: Query, gallery: Gallery) -> list[Attribution]:
        """One attribution per gallery image, by ARD when the model's adapters are set, else by ARD-."""
        return self._read(query, gallery, (self.model.config.adapters,))[0].ranked

    def rank_both(self, query: Query, gallery: Gallery) -> dict[str, list[Attribution]]:
        """{"ARD-": ..., "ARD": ...} from one forward pass."""
        return {name: found.ranked for name, found in zip(("ARD-", "ARD"), self._read(query, gallery, (False, True)))}

    def read(self, query: Query, gallery: Gallery, name: str = "ARD") -> dict[str, list[Attribution]]:
        """All that `rank` was read from: the rows of `Readings.named`."""
        return self._read(query, gallery, (self.model.config.adapters,))[0].named(name)

    def read_both(self, query: Query, gallery: Gallery) -> dict[str, list[Attribution]]:
        """The same for "ARD-" and "ARD"."""
        plain, adapted = self._read(query, gallery, (False, True))
        return plain.named("ARD-") | adapted.named("ARD")

    def _read(self, query: Query, gallery: Gallery, variants: tuple[bool, ...]) -> list[Readings]:
        if gallery is not self._gallery[0]:  # features are kept until another gallery is asked
            self._gallery = gallery, self.cache(np.stack([gallery.pixels(image) for image in gallery]))
        return read(self.model, self.prompt(query), self._gallery[1], [image.image_id for image in gallery], variants)
