"""The paper's prompt templates and class names (supplement, Tables 4, 5 and 6), and how a class name becomes a prompt.

First link of the data flow: customisation and generation fill these templates, the tables are broken down by them.
"""

from ard.templates.classes import GROUP_CLASSES
from ard.templates.sentences import COCO_CLASSES, COCO_SETTINGS, COCO_TEMPLATES, GROUP_TEMPLATES
from ard.templates.words import context_medium, fill, with_article, words

__all__ = [
    "COCO_CLASSES", "COCO_SETTINGS", "COCO_TEMPLATES", "GROUP_CLASSES", "GROUP_TEMPLATES",
    "context_medium", "fill", "with_article", "words",
]
