"""The generator's language: the words of the COCO-type templates, a CLIP tokenizer over them and captions for scenes."""

import json
from pathlib import Path
from typing import Sequence

from transformers import CLIPTokenizer

from ard.world import CLASSES

MAX_LENGTH = 24
MEDIUM_WORDS = {
    "photo": "A photo of", "oil painting": "An oil painting of", "watercolor illustration": "A watercolor illustration of",
    "charcoal sketch": "A charcoal sketch of", "digital painting": "A digital painting of", "pencil drawing": "A pencil drawing of",
}
CONTEXT_WORDS = {
    "forest": "standing in a forest.", "lake": "standing near the lake.", "beach": "standing on the beach.",
    "city street": "standing in a city street.", "mountain peak": "standing on a mountain peak.",
}


def caption(class_names: Sequence[str], context: str, medium: str) -> str:
    """A caption in the words of Table 4.

    >>> caption(["elephant", "cat"], "beach", "oil painting")
    'An oil painting of an elephant and a cat standing on the beach.'
    """
    nouns = " and ".join(f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in class_names)
    return f"{MEDIUM_WORDS[medium]} {nouns} {CONTEXT_WORDS[context]}"


def build_tokenizer(folder: str | Path) -> CLIPTokenizer:
    """Write a CLIP byte-pair vocabulary in which every template word is one token (unknown words fall to letters)."""
    text = " ".join([*MEDIUM_WORDS.values(), *CONTEXT_WORDS.values(), *CLASSES, "and an a"]).lower()
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
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_LENGTH)
