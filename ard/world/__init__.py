"""The mini world: drawings, individuals and scenes with exact boxes and masks (DESIGN 4)."""

from ard.world.artwork import CLASSES, SPLITS, Drawing
from ard.world.backgrounds import CONTEXTS
from ard.world.individuals import Individual
from ard.world.media import GREY_MEDIA, MEDIA
from ard.world.world import Placed, Scene, World

__all__ = ["CLASSES", "CONTEXTS", "GREY_MEDIA", "MEDIA", "SPLITS", "Drawing", "Individual", "Placed", "Scene", "World"]
