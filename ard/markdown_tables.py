"""From the text of the CSV files in data/ to the tables of README.md and notebooks/README.md, as Markdown.

`ard.readme` says which table stands where.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

NOTHING = "There are no results to show yet: the base models are still in training. `make repro` prints them once they ship."
EVALUATE = "python -m ard.run 08_evaluate"
# What has to run before the evaluation to make a row's model anew.
COMMANDS = {"CountGD (untrained)": "python -m ard.run 14_exemplar_prompted", "ARD-": "python -m ard.run 06_phase1",
            "ARD": "python -m ard.run 07_phase2", "ARD (rendered queries)": "python -m ard.run 07_phase2"}
COUNTS = ("n_", "trainings", "gallery_size", "zoom", "views")  # how columns begin that are whole numbers
ALONE = "`python -m ard.run 21_diagnostics` alone"


def results(table2: str | None, more: str | None = None) -> str:
    """The Markdown of Table 2, from the text of table2.csv (None: not there yet) and of the rows that 21_diagnostics adds,
    which stand before ARD-.

    A method with boxes is shown in its gated reading.
    """
    rows, added = _rows(table2), _rows(more)
    if not rows:
        return NOTHING
    rows = _before_ours(rows, added)
    commands = {name: f"`{command}`" for name, command in COMMANDS.items()} | {row["method"]: ALONE for row in added}
    heads = ["method", "box acc.", "Recall@1 [95%]", "Recall@5", "Recall@10", "class oracle, same gate", "within the class (chance)",
             f"command, then `{EVALUATE}`"]
    lines = [[name, row["box_acc"], row["recall_1"] if row["ci_low_recall_1"] == "–" else _recall(row), row["recall_5"],
              row["recall_10"], row["class_oracle_recall_1"], f"{row['same_class_recall_1']} ({row['same_class_chance']})",
              commands.get(name, "")] for name, row in _readings(rows).items()]
    return _table(heads, lines, f"{rows[0]['dataset']}, test: {rows[0]['n_queries']} queries of {rows[0]['n_exemplars']} exemplars, "
                  f"each ranked against {rows[0]['gallery_size']} images. Intervals resample exemplars.")


def ablations(rows: str) -> str:
    """The Markdown of the ablation table, from the text of rows.csv: ARD after both phases, and its distance to the first row."""
    def compared(row: dict[str, str]) -> list[str]:
        return ["", ""] if row["against"] == row["row"] else [row["against"], _interval(row, "difference")]

    heads = ["row", "gated Recall@1 [95%]", "Recall@5", "within the class", "compared with", "paired difference [95%]"]
    return _table(heads, [[row["row"], _recall(row), row["recall_5"], row["same_class_recall_1"], *compared(row)]
                          for row in _rows(rows) if row["method"] == "ARD"])


def backbones(table: str) -> str:
    """The Markdown of Table 3, from the text of table3.csv: both phases of each pair, and ARD's distance to the last."""
    rows = _rows(table)
    first = {row["row"]: _recall(row) for row in rows if row["method"] == "ARD-"}
    heads = ["frozen backbones", "ARD- [95%]", "ARD [95%]", "box acc.", "within the class", "paired difference to the last [95%]"]
    return _table(heads, [[row["row"], first[row["row"]], _recall(row), row["box_acc"], row["same_class_recall_1"],
                           "" if row["against"] == row["row"] else _interval(row, "difference")]
                          for row in rows if row["method"] == "ARD"])


SETS = {"single": "Recall@1", "crowd": "Recall@1 in a crowd", "couples": "Recall@1 among couples"}  # of `asked_twice`
JUDGED = {"auroc": "is it there? AUROC", "auroc_crowd": "in a crowd"}  # of the same


def asked_twice(rows: str, first: str = "that in use") -> str:
    """The Markdown of a study that `ard.single_and_couples` made, from the text of rows.csv; the first row is what others are compared
    with, which is called `first`. With the crowd where the study asked in one, and `auroc` where it asked whether the source is there."""
    known = _rows(rows)
    sets = {one: head for one, head in SETS.items() if any(f"recall_1_{one}" in row for row in known)}
    judged = {name: head for name, head in JUDGED.items() if any(name in row for row in known)}
    heads = ["", *(h for head in sets.values() for h in (f"{head} [95%]", f"less {first} [95%]")), "box on the right one of two [95%]",
             *judged.values()]
    lines = [[row["method"], *(cell for one in sets for cell in (
        _interval(row, f"recall_1_{one}"), _interval(row, f"minus_{one}") if place else "")),
              _interval(row, "within_image"), *(row[name] for name in judged)] for place, row in enumerate(known)]
    return _table(heads, lines)


def tokens(rows: str) -> str:
    """The Markdown of what a region's token was made of, from the text of rows.csv; the first row is what is in use."""
    heads = ["token, or what it is compared through", "Recall@1 [95%]", "within the class", "paired difference [95%]"]
    return _table(heads, [[row["token"], _recall(row), row["same_class_recall_1"], _interval(row, "difference") if place else ""]
                          for place, row in enumerate(_rows(rows))])


def seeds(rows: str) -> str:
    """The Markdown of what was trained with more than one seed, from the text of seeds.csv."""
    found = _rows(rows)
    heads = ["settings", "phase", "trainings", "gated Recall@1 [95%]", "between trainings", "paired difference to the first [95%]"]
    return _table(heads, [[row["settings"], row["method"], row["trainings"], _recall(row), row["spread"],
                           "" if row["settings"] == found[0]["settings"] else _interval(row, "difference")] for row in found])


def arena(table: str, timings: str | None = None) -> str:
    """The Markdown of every other method, from the text of the arena's table2.csv and of what each cost (JSON by method).

    Recall@1 is gated where a method has boxes; ARD's lead is read the same way.
    """
    costs = {name: format(cost["query_seconds"], ".2g") for name, cost in json.loads(timings or "{}").items()}
    heads = ["method", "given", "box acc.", "Recall@1 [95%]", "Recall@10", "within the class", "ARD is ahead by [95%]", "queries",
             "seconds a query"]
    return _table(heads, [[name, row["given"], row["box_acc"], _recall(row), row["recall_10"], row["same_class_recall_1"],
                           _interval(row, "ard_minus"), row["n_queries"], costs.get(name, "–")]
                          for name, row in _readings(_rows(table)).items() if row["ard_minus"] != "–" and name != "ARD"])


def release(table: str, more: str | None = None) -> str:
    """The Markdown of Table 2 on a test set of its own, from the text of its table, read as in `arena`, and of the rows that
    21_diagnostics adds, placed as in `results`."""
    rows = _rows(table)
    heads = ["method", "given", "box acc.", "Recall@1 [95%]", "Recall@5", "Recall@10", "within the class", "ARD is ahead by [95%]"]
    lines = [[name, row["given"], row["box_acc"], _recall(row), row["recall_5"], row["recall_10"], row["same_class_recall_1"],
              "–" if row["ard_minus"] == "–" else _lead(row, "ard_minus")]
             for name, row in _readings(_before_ours(rows, _rows(more))).items()]
    return _table(heads, lines, f"{rows[0]['dataset']}: {rows[0]['n_queries']} queries of {rows[0]['n_exemplars']} exemplars, each ranked against "
                  f"{rows[0]['gallery_size']} images. Intervals resample exemplars.")


def couples(within: str, table: str) -> str:
    """The Markdown of within-image accuracy, from the text of within_image.csv, and of the ranking on the same images, from
    that of couples.csv, gated."""
    rows, ranked = _rows(within), _readings(_rows(table))
    heads = ["method", "box on the right one [95%]", "on the other one", "right of the two", "the same, of one drawing",
             "ARD is ahead by [95%]", "Recall@1 [95%]"]
    lines = [[row["method"], _interval(row, "within_image"), row["other"], row["of_two"], row["same_drawing"],
              _lead(row, "ours_minus"), _recall(ranked[row["method"]])] for row in rows]
    return _table(heads, lines, f"couples: {rows[0]['n_queries']} queries, each ranked against "
                  f"{ranked['class oracle']['gallery_size']} images. Intervals resample images, those of Recall@1 exemplars.")


def diagnostics(changed: str, trust: str) -> str:
    """The Markdown of what each detector reads and how sure it can be, from the texts of changed.csv and trust.csv."""
    by = {(row["method"], row["question"]): row for row in _rows(changed)}
    heads = ["detector", "other exemplar: X falls", "its own image above X", "other words: X falls", "other box: X falls",
             "source in the gallery? AUROC", "ECE, calibrated", "source against its class, AUROC"]
    lines = []
    for row in _rows(trust):
        asked = [by[row["method"], question] for question in ("exemplar", "text", "box")]
        exemplar, *others = (_interval(one, "share_fallen", "ci_low", "ci_high") for one in asked)
        lines.append([row["method"], exemplar, asked[0]["partner_above"], *others, row["auroc"], row["ece_calibrated"],
                      row["same_class_auroc"]])
    return _table(heads, lines)


def sureness(table: str) -> str:
    """The Markdown of what chances said and what was found, by gallery size, from the text of sureness.csv."""
    heads = ["images in the gallery", "chance that the source is there (half is right)", "ECE", "AUROC",
             "chance of the strongest image", "it is the source in", "ECE"]
    return _table(heads, [[row[name] for name in ("gallery_size", "sure", "ece", "auroc", "claimed", "right", "ece_right")]
                          for row in _rows(table)])


def presence(table: str) -> str:
    """The Markdown of how well methods tell whether the source is there, from the text of release_presence.csv."""
    heads = ["method", "source in the gallery? AUROC [95%]", "less ARD's, paired [95%]", "ECE", "chance said, on average"]
    return _table(heads, [[row["method"], _interval(row, "auroc"), _lead(row, "minus"), row["ece"], row["sure"]]
                          for row in _rows(table)])


def counterfactuals(told: str, table: str) -> str:
    """The Markdown of who knows what made a picture, from the text of told.csv, and of the ranking of queries with one clear source,
    from that of table.csv, read as in `arena`."""
    rows, ranked = _rows(told), _readings(_rows(table))
    oracle = ranked["class oracle"]
    heads = ["method", "share of the strongest effect [95%]", "ARD's less this, paired [95%]", "picks the strongest",
             "Recall@1 where the source is clear [95%]"]
    lines = [[row["method"], _interval(row, "effect"), _lead(row, "ours_minus"), row["right"],
              _recall(oracle if row["method"] == "a guess" else ranked[row["method"]])] for row in rows]
    return _table(heads, lines, f"{rows[0]['n_queries']} queries of {rows[0]['n_collections']} collections, {oracle['n_queries']} of "
                  f"them with a clear source, ranked against {oracle['gallery_size']} images. Intervals resample collections.")


def together(table: str) -> str:
    """The Markdown of what is found with so many pictures asked about together, from the text of pictures.csv; the lead of ARD with a
    second look is over the method with as many as there are."""
    return _by_number(_rows(table), ("dataset", "set"), "method", "ARD, close-up", "close-up's less this, with the most, paired [95%]")


def ways(table: str) -> str:
    """The Markdown of how one answer was made of several on validation, from the text of ways.csv; the first way is the one in use."""
    rows = _rows(table)
    return _by_number(rows, ("gallery", "images"), "way", rows[0]["method"], "way in use less this, with the most, paired [95%]")


def _by_number(rows: Sequence[Mapping[str, str]], asked: tuple[str, str], method: str, ours: str, lead: str) -> str:
    """A line for each place where was asked, a column and its heading, and each method, under the heading `method`; a cell for each
    number of pictures."""
    sizes = sorted({int(row["n_pictures"]) for row in rows})
    heads = [asked[1], method, *(f"{n} pictures [95%]" if n > 1 else "one picture [95%]" for n in sizes), lead]
    known = {(row[asked[0]], row["method"], int(row["n_pictures"])): row for row in rows}
    lines = []
    for one in dict.fromkeys((row[asked[0]], row["method"]) for row in rows):
        mine = [known.get((*one, n)) for n in sizes]
        last = "–" if one[1] == ours else _interval([row for row in mine if row][-1], "ours_minus")
        lines.append([*one, *(_interval(row, "recall_1") if row else "" for row in mine), last])
    return _table(heads, lines)


def study(table: str) -> str:
    """The Markdown of AbC among distractors: Recall@10 for wordings that no mapper saw, from the text of study.csv."""
    known: dict[tuple[str, str], dict[str, str]] = {}
    for row in (row for row in _rows(table) if row["wording"] == "test"):
        known.setdefault((row["encoder"], row["mapper"]), {})[f"{row['classes']} classes, {row['prompts']}"] = row["recall_10"]
    groups = list(dict.fromkeys(group for found in known.values() for group in found))
    return _table(["features", "mapper", *groups], [[*pair, *(found[group] for group in groups)] for pair, found in known.items()])


def listed(columns: Mapping[str, str]) -> Callable[[str], str]:
    """A writer of tables as they stand: from the text of a CSV file, the named columns under other titles, title -> name; a value
    with its interval where the table has one."""
    def write(table: str) -> str:
        return _table(list(columns), [[_interval(row, name) if f"{name}_low" in row else row[name] for name in columns.values()]
                                      for row in _rows(table)])

    return write


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]], note: str = "") -> str:
    """A Markdown table, and below it a note.

    >>> print(_table(["", "b"], [["1", "2"]]))
    | | b |
    | --- | --- |
    | 1 | 2 |
    """
    head, *body = (f"| {' | '.join(cells)} |" for cells in (heads, *lines))
    return "\n".join([head.replace("|  |", "| |"), "|" + " --- |" * len(heads), *body, *(["", note] if note else [])])


def _rows(text: str | None) -> list[dict[str, str]]:
    """The rows of a CSV file as they are shown."""
    return [{key: value if key.startswith(COUNTS) else _short(value) for key, value in row.items()}
            for row in csv.DictReader(io.StringIO(text or ""))]


def _before_ours(rows: list[dict[str, str]], added: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows with others put before ARD-, or behind all where it is not there."""
    place = next((i for i, row in enumerate(rows) if row["method"] == "ARD-"), len(rows))
    return [*rows[:place], *added, *rows[place:]]


def _readings(rows: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    """Each method's row: the gated one where it has boxes."""
    first: dict[str, dict[str, str]] = {}
    for row in sorted(rows, key=lambda r: r["gated"] != "True"):
        first.setdefault(row["method"], row)
    return {name: first[name] for name in dict.fromkeys(row["method"] for row in rows)}


def _recall(row: dict[str, str]) -> str:
    """Recall@1 with its bounds, as tables of either form name them."""
    of = "_recall_1" if "ci_low_recall_1" in row else ""
    return _interval(row, "recall_1", f"ci_low{of}", f"ci_high{of}")


def _lead(row: dict[str, str], name: str) -> str:
    """How far ARD is ahead of a method, which is a dash in its own row."""
    return "–" if row["method"] == "ARD" else _interval(row, name)


def _interval(row: dict[str, str], name: str, low: str = "", high: str = "") -> str:
    """A value and its bounds, which stand in `name`_low and `name`_high where nothing else is told.

    >>> _interval({"gap": ".1", "gap_low": "0", "gap_high": ".2"}, "gap")
    '.1 [0, .2]'
    """
    return f"{row[name]} [{row[low or f'{name}_low']}, {row[high or f'{name}_high']}]"


def _short(value: str) -> str:
    """Three digits of a number; a dash for nothing.

    >>> _short("0.123456"), _short(""), _short("ARD")
    ('0.123', '–', 'ARD')
    """
    try:
        return "–" if math.isnan(float(value)) else f"{float(value):.3f}"
    except ValueError:
        return value or "–"
