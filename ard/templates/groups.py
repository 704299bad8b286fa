"""The group of a class of the LVIS-type dataset, and what its sentences say of place and medium (supplement, Tables 5 and 6)."""

from __future__ import annotations

from ard.config import nearest
from ard.templates.classes import GROUP_CLASSES
from ard.templates.sentences import GROUP_TEMPLATES
from ard.templates.words import words

# In every group, in this order: five sentences without a medium, which are photos, then five media.
MEDIA = (*["photo"] * 5, "oil painting", "charcoal sketch", "ink drawing", "photorealistic rendering", "vintage poster")
GROUPS = {words(name): group for group, names in reversed(GROUP_CLASSES.items()) for name in reversed(names)}  # the first that has it


def group_templates(class_name: str) -> tuple[str, ...]:
    """The ten sentences of a class, by its name in Table 6 or the words of that. ValueError names the nearest class.

    >>> group_templates("bat_(animal)")[1], group_templates("mug")[1]
    ('A {} is wandering through a dense forest.', 'A {} is sitting next to a steaming cup of herbal tea.')
    """
    group = GROUPS.get(words(class_name))
    if group is None:
        raise ValueError(f"class {class_name!r} stands in no group of Table 6; {nearest(words(class_name), GROUPS)}")
    return GROUP_TEMPLATES[group]


def group_setting(class_name: str, index: int) -> tuple[str, str]:
    """(context, medium) of sentence `index` of a class: what stands behind the thing, and what it is drawn in.

    >>> group_setting("cat", 0), group_setting("cat", 7)
    (('is resting under the shade of a large tree', 'photo'), ('in a traditional setting', 'ink drawing'))
    """
    return group_templates(class_name)[index].split("{}")[1].strip(" ."), MEDIA[index]
