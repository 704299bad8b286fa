"""`python -m ard.readme`: writes the tables of results into README.md and those of studies into notebooks/README.md, between their
markers, so that no number there is typed by hand.

Reads the tables in data/ that `PAGES` names; without Table 2 the README says that there are no results yet.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ard import markdown_tables as tables
from ard.files import FileError, atomic_write_text

BEHAVIOUR = {"condition": "condition", "has an R_Q": "kept", "the judge knows the individual [95%]": "individual",
             "that less as used, paired [95%]": "individual_minus", "ARD has X first of ten [95%]": "first",
             "ARD's score of X [95%]": "score", "score less as used, paired [95%]": "score_minus"}
FOLLOWS = {"over": "over", "score of X by": "method", "AUROC for the judge's verdict [95%]": "auroc",
           "ARD's less this, paired [95%]": "ours_minus", "correlation of the conditions' means": "rank_correlation"}
POINTED = {"fault": "fault", "method": "method", "the faulty picture first": "found", "and the box on the fault [95%]": "pointed_at",
           "ARD's less this, paired [95%]": "ours_minus", "box on the right one of two": "within_image",
           "of exemplars, ten pictures asked together": "together"}
STATES = {"learned": "condition", "has an R_Q": "kept", "the judge knows the individual [95%]": "individual",
          "that less sound, paired [95%]": "individual_minus", "judge's likeness to the sound one [95%]": "likeness",
          "likeness less sound, paired [95%]": "likeness_minus"}
GIVEN_BACK = {"learned again": "condition", "the judge knows more than with the fault, paired [95%]": "individual_minus",
              "likeness more, paired [95%]": "likeness_minus"}
RECIPES = {"recipe": "condition", "the judge knows the individual [95%]": "individual", "that less as used [95%]": "individual_minus",
           "class as told [95%]": "class", "class less as used [95%]": "class_minus", "place": "context", "medium": "medium",
           "ARD has X first of four [95%]": "first", "first less as used [95%]": "first_minus"}
ZOOMS = {"zoom": "zoom", "views of a picture": "views", "method": "method", "Recall@1 [95%]": "recall_1", "box acc.": "box_acc"}
POSES = {"in X's place": "shown", "method": "method", "Recall@1 [95%]": "recall_1", "box acc.": "box_acc"}
SURE = {"method": "method", "source in the gallery? AUROC [95%]": "auroc", "ECE": "ece", "chance said, on average": "sure"}
PRESENCE = {"set": "dataset", "method": "method", "pictures": "n_pictures", "source in the gallery? AUROC [95%]": "auroc", "ECE": "ece",
            "chance said, on average": "sure"}
LEARNED = {"individuals learned from": "n_individuals", "pictures drawn of them": "n_pictures", "right one of ten [95%]": "accuracy",
           "more than from the first [95%]": "minus"}

# page: the name of each part, as its markers have it: the tables it is made of, and how; all but the first may be missing
PAGES = {
    "README.md": {
        "results": (("data/tables/table2.csv", "data/diagnostics/table2_rows.csv"), tables.results),
        "release": (("data/tables/release.csv", "data/diagnostics/release_rows.csv"), tables.release),
        "couples": (("data/tables/within_image.csv", "data/tables/couples.csv"), tables.couples),
        "sureness": (("data/results/sureness.csv",), tables.sureness),
        "presence": (("data/tables/release_presence.csv",), tables.presence)},
    "notebooks/README.md": {
        "arena": (("data/arena/table2.csv", "notebooks/executed/10_arena.timings.json"), tables.arena),
        "study": (("data/abc/study.csv",), tables.study),
        "clutter": (("data/clutter/table.csv",), tables.release), "zooms": (("data/clutter/zooms.csv",), tables.listed(ZOOMS)),
        "poses": (("data/clutter/poses.csv",), tables.listed(POSES)),
        "clutter sure": (("data/clutter/presence.csv",), tables.listed(SURE)),
        "close-up": (("data/closeup/rows.csv",), partial(tables.asked_twice, first="ARD's")),
        "individuals": (("data/individuals/curve.csv",), tables.listed(LEARNED)),
        "companions": (("data/companions/rows.csv",), tables.asked_twice), "scores": (("data/scores/rows.csv",), tables.asked_twice),
        "ablations": (("data/ablations/rows.csv",), tables.ablations), "seeds": (("data/ablations/seeds.csv",), tables.seeds),
        "tokens": (("data/tokens/rows.csv",), tables.tokens), "backbones": (("data/backbones/table3.csv",), tables.backbones),
        "counterfactuals": (("data/counterfactuals/told.csv", "data/counterfactuals/table.csv"), tables.counterfactuals),
        "behaviour": (("data/behaviour/conditions.csv",), tables.listed(BEHAVIOUR)),
        "follows": (("data/behaviour/follows.csv",), tables.listed(FOLLOWS)),
        "pointed": (("data/repair/pointed.csv",), tables.listed(POINTED)),
        "states": (("data/repair/states.csv",), tables.listed(STATES)),
        "given back": (("data/repair/given_back.csv",), tables.listed(GIVEN_BACK)),
        "recipes": (("data/recipes/recipes.csv",), tables.listed(RECIPES)),
        "together": (("data/together/pictures.csv",), tables.together),
        "together ways": (("data/together/ways.csv",), tables.ways),
        "together sure": (("data/together/presence.csv",), tables.listed(PRESENCE)),
        "diagnostics": (("data/diagnostics/changed.csv", "data/diagnostics/trust.csv"), tables.diagnostics)}}


def markers(part: str) -> tuple[str, str]:
    """The lines before and behind a part."""
    return f"<!-- {part}: written by python -m ard.readme -->", f"<!-- end of {part} -->"


def filled(text: str, read: Callable[[str], str | None], page: str = "README.md") -> str:
    """The text of a page with its parts replaced; `read` gives the text of a table, None where it is missing.

    Raises FileError when a part's markers are not there, once each and in order.
    """
    for part, (files, write) in PAGES[page].items():
        texts = [read(file) for file in files]
        if part == "results" or texts[0] is not None:
            text = _between(text, page, *markers(part), write(*texts))
    return text


def _between(text: str, page: str, start: str, end: str, table: str) -> str:
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise FileError(f"{page}: expected one line '{start}' and after it one line '{end}'")
    head, tail = text.split(start)[0], text.split(end)[1]
    return f"{head}{start}\n{table}\n{end}{tail}"


def main(root: Path = Path(".")) -> int:
    """Fill the pages from the tables; returns the exit status."""
    def read(file: str) -> str | None:
        return (root / file).read_text(encoding="utf-8") if (root / file).is_file() else None

    try:
        for page in PAGES:
            text = read(page)
            if text is None:
                raise FileError(f"{page}: no such file")
            atomic_write_text(root / page, filled(text, read, page))
    except FileError as error:
        print(f"ard.readme: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
