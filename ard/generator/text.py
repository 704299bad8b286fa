"""The generator's language: the words of the COCO-type templates and of looks, a CLIP tokenizer over them and captions.

Captions on the web tell more than a class: colour, pattern, breed, and now and then a name that means one individual.
A model that learned such words has room in its word space for a new individual; without them, its looks are noise.
"""

import json
from pathlib import Path
from typing import Sequence

import numpy as np
from transformers import CLIPTokenizer

from ard.world import CLASSES
from ard.world.individuals import MARKINGS, PALETTES, WARPS, Individual

MAX_LENGTH = 28
MEDIUM_WORDS = {
    "photo": "A photo of", "oil painting": "An oil painting of", "watercolor illustration": "A watercolor illustration of",
    "charcoal sketch": "A charcoal sketch of", "digital painting": "A digital painting of", "pencil drawing": "A pencil drawing of",
}
CONTEXT_WORDS = {
    "forest": "standing in a forest.", "lake": "standing near the lake.", "beach": "standing on the beach.",
    "city street": "standing in a city street.", "mountain peak": "standing on a mountain peak.",
}
LOOK_WORDS = {  # what is as drawn has no word
    **{palette: palette for palette in PALETTES if palette != "natural"},
    **dict(zip(MARKINGS[1:], ("spotted", "banded", "patched", "dipped", "hatted", "scarfed"))),
    **dict(zip(WARPS[1:], ("tall", "wide", "leaning", "topheavy", "bottomheavy"))),
}


def kind_word(group: str) -> str:
    """One word for a group of drawings, as a breed's name.

    >>> kind_word("bear/noto-panda")
    'notopanda'
    """
    return "".join(letter for letter in group.split("/")[-1] if letter.isalpha())


def described(individual: Individual, kind: str, rng: np.random.Generator, keep: float = 0.7) -> str:
    """The class with words for warp, palette, marking and kind before it, each kept with probability `keep`.

    >>> someone = Individual("cat", "cat-noto-cat", "noto", "moss", "spots", "none")
    >>> described(someone, "notocat", np.random.default_rng(0), keep=1.0)
    'moss spotted notocat cat'
    """
    looks = (LOOK_WORDS.get(look) for look in (individual.warp, individual.palette, individual.marking))
    words = [word for word in (*looks, kind) if word and rng.random() < keep]
    return " ".join([*words, individual.class_name])


def caption(class_names: Sequence[str], context: str, medium: str) -> str:
    """A caption in the words of Table 4.

    >>> caption(["elephant", "cat"], "beach", "oil painting")
    'An oil painting of an elephant and a cat standing on the beach.'
    """
    nouns = " and ".join(f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in class_names)
    return f"{MEDIUM_WORDS[medium]} {nouns} {CONTEXT_WORDS[context]}"


def build_tokenizer(folder: str | Path, kinds: Sequence[str] = ()) -> CLIPTokenizer:
    """Write a CLIP byte-pair vocabulary in which every word of templates, looks and `kinds` is one token (unknown words
    fall to letters)."""
    known = (*MEDIUM_WORDS.values(), *CONTEXT_WORDS.values(), *CLASSES, *LOOK_WORDS.values(), *kinds, "and an a")
    text = " ".join(known).lower()
    words = sorted(set(text.replace(".", " ").split()))
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    vocabulary = letters + [letter + "</w>" for letter in letters]
    merges: list[str] = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            # right to left, so that every merge of a word ends in its own unique tail
            left, right = pieces[-2:]
            pieces[-2:] = [left + right]
            if f"{left} {right}" not in merges:
                merges.append(f"{left} {right}")
            if left + right not in vocabulary:
                vocabulary.append(left + right)
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return load_tokenizer(folder)


def load_tokenizer(folder: str | Path) -> CLIPTokenizer:
    """The vocabulary that `build_tokenizer` wrote."""
    folder = Path(folder)
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_LENGTH)
