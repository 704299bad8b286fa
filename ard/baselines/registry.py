"""The list of attribution methods: built-in ones register here, installed packages by the entry point group `ard.methods`.

`ard.arena` asks every method of the list the same queries; an `Entry` says how a method is built and what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType

from ard.baselines.kit import Kit
from ard.baselines.methods import Method
from ard.config import nearest

GIVEN = {  # what a method may use beside the picture Q and the gallery, in the order in which tables list it
    "text": "the class name or the prompt",
    "box": "R_Q",
    "mask": "which pixels of R_Q are the concept's",
    "pairs": "AD+ train, to learn from",
    "rendered": "rendered pairs of base individuals, to learn from",
    "more": "pairs of 200 individuals more, to learn from",
    "generator": "the base generator's weights, to read features from",
    "gradients": "gradients through a generator",
    "customised": "G_i, the customised generator that drew Q",
    "training": "training for each query",
}
GROUP = "ard.methods"


class RegistryError(ValueError):
    """An entry that cannot be used; the message names it and the reason."""


@dataclass(frozen=True)
class Entry:
    """One row of the arena's table. `build(kit)` gives a method; where that has a `fit`, it is called once before `rank`."""

    name: str
    build: Callable[[Kit], Method]
    given: frozenset[str] | tuple[str, ...]
    source: str  # paper, section or equation
    reads: tuple[str, ...] = ()  # folders below data/ that the answers depend on, beside the dataset
    per_query: bool = False  # so slow that it is asked one query of each exemplar

    def __post_init__(self):
        unknown = set(self.given) - set(GIVEN)
        if unknown:
            raise RegistryError(f"method '{self.name}': unknown '{min(unknown)}' in `given`; {nearest(min(unknown), GIVEN)}")


def built_in() -> tuple[ModuleType, ...]:
    """The modules of this package that list ENTRIES, which import this one. They are named in a statement that
    `ard.provenance` can read, so a change of theirs makes the stages stale that ask them."""
    from ard.baselines import abc_rows, abu, closeups, diffusion_matching, fsod, gradient_rows, leave_one_out, simple, whitened

    return simple, abc_rows, whitened, abu, fsod, gradient_rows, diffusion_matching, leave_one_out, closeups


def entries(modules: Iterable[ModuleType] | None = None, skip: Iterable[str] = ()) -> dict[str, Entry]:
    """All methods by name but those of `skip`: those of `modules` (default: the built-in ones), then of installed packages.

    An entry point of the group `ard.methods` names an Entry or a list of them. RegistryError: a name stands twice, one to skip is
    not there, or an entry point gives something else.
    """
    listed = [entry for module in (built_in() if modules is None else modules) for entry in module.ENTRIES]
    for point in metadata.entry_points(group=GROUP):
        found = point.load()
        listed += found if isinstance(found, (list, tuple)) else [found]
    known: dict[str, Entry] = {}
    for entry in listed:
        if not isinstance(entry, Entry):
            raise RegistryError(f"entry point group {GROUP}: expected an Entry, found {type(entry).__name__}")
        if entry.name in known:
            raise RegistryError(f"method '{entry.name}' stands twice in the registry; rename one")
        known[entry.name] = entry
    for name in skip:
        if name not in known:
            raise RegistryError(f"no method '{name}' to skip; {nearest(name, known)}")
    return {name: entry for name, entry in known.items() if name not in set(skip)}
