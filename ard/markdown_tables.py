"""From the text of the CSV files in data/ to the tables of README.md and notebooks/README.md, as Markdown.

`ard.readme` says which table stands where.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence

NOTHING = "There are no results to show yet: the base models are still in training. `make repro` prints them once they ship."
EVALUATE = "python -m ard.run 08_evaluate"
# What has to run before the evaluation to make a row's model anew.
COMMANDS = {"CountGD (untrained)": "python -m ard.run 14_exemplar_prompted", "ARD-": "python -m ard.run 06_phase1",
            "ARD": "python -m ard.run 07_phase2", "ARD (rendered queries)": "python -m ard.run 07_phase2"}
ALONE = "`python -m ard.run 21_diagnostics` alone"
HEADER = ("| method | box acc. | Recall@1 [95%] | Recall@5 | Recall@10 | class oracle, same gate | within the class "
          "(chance) | command, then `" + EVALUATE + "` |")


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
    lines = [HEADER, "|" + " --- |" * 8]
    for name, row in _readings(rows).items():
        row = {key: _short(value) for key, value in row.items()}
        interval = f" [{row['ci_low_recall_1']}, {row['ci_high_recall_1']}]" if row["ci_low_recall_1"] != "–" else ""
        lines.append(f"| {name} | {row['box_acc']} | {row['recall_1']}{interval} | {row['recall_5']} | {row['recall_10']} "
                     f"| {row['class_oracle_recall_1']} | {row['same_class_recall_1']} ({row['same_class_chance']}) "
                     f"| {commands.get(name, '')} |")
    some = rows[0]
    lines += ["", f"{some['dataset']}, test: {some['n_queries']} queries of {some['n_exemplars']} exemplars, each ranked "
              f"against {some['gallery_size']} images. Intervals resample exemplars."]
    return "\n".join(lines)


def ablations(rows: str) -> str:
    """The Markdown of the ablation table, from the text of rows.csv: ARD after both phases, and its distance to the first row."""
    shown = [row for row in _rows(rows) if row["method"] == "ARD"]
    lines = ["| row | gated Recall@1 [95%] | Recall@5 | within the class | compared with | paired difference [95%] |",
             "|" + " --- |" * 6]
    for row in ({key: _short(value) for key, value in row.items()} for row in shown):
        own = row["against"] == row["row"]
        lines.append(f"| {row['row']} | {_recall(row)} | {row['recall_5']} | {row['same_class_recall_1']} "
                     f"| {'' if own else row['against']} | {'' if own else _interval(row, 'difference')} |")
    return "\n".join(lines)


def backbones(table: str) -> str:
    """The Markdown of Table 3, from the text of table3.csv: both phases of each pair, and ARD's distance to the last."""
    rows = [{key: _short(value) for key, value in row.items()} for row in _rows(table)]
    by = {(row["row"], row["method"]): row for row in rows}
    lines = ["| frozen backbones | ARD- [95%] | ARD [95%] | box acc. | within the class | paired difference to the last [95%] |",
             "|" + " --- |" * 6]
    for name in dict.fromkeys(row["row"] for row in rows):
        first, row = by[name, "ARD-"], by[name, "ARD"]
        gap = "" if row["against"] == name else _interval(row, "difference")
        lines.append(f"| {name} | {_recall(first)} | {_recall(row)} | {row['box_acc']} | {row['same_class_recall_1']} | {gap} |")
    return "\n".join(lines)


SETS = {"single": "Recall@1", "crowd": "Recall@1 in a crowd", "couples": "Recall@1 among couples"}  # of `asked_twice`
JUDGED = {"auroc": "is it there? AUROC", "auroc_crowd": "in a crowd"}  # of the same


def asked_twice(rows: str, first: str = "that in use") -> str:
    """The Markdown of a study that `ard.single_and_couples` made, from the text of rows.csv; the first row is what others are compared
    with, which is called `first`. With the crowd where the study asked in one, and `auroc` where it asked whether the source is there."""
    known = _rows(rows)
    sets = {one: head for one, head in SETS.items() if any(f"recall_1_{one}" in row for row in known)}
    judged = {name: head for name, head in JUDGED.items() if any(name in row for row in known)}
    heads = [*(f"{head} [95%] | less {first} [95%]" for head in sets.values()), "box on the right one of two [95%]", *judged.values()]
    lines = [f"| | {' | '.join(heads)} |", "|" + " --- |" * (2 + 2 * len(sets) + len(judged))]
    for place, found in enumerate(known):
        row = {key: _short(value) for key, value in found.items()}
        cells = [row["method"]]
        for one in sets:
            cells += [_interval(row, f"recall_1_{one}"), _interval(row, f"minus_{one}") if place else ""]
        lines.append(f"| {' | '.join([*cells, _interval(row, 'within_image'), *(row[name] for name in judged)])} |")
    return "\n".join(lines)


def tokens(rows: str) -> str:
    """The Markdown of what a region's token was made of, from the text of rows.csv; the first row is what is in use."""
    lines = ["| token, or what it is compared through | Recall@1 [95%] | within the class | paired difference [95%] |",
             "|" + " --- |" * 4]
    for place, found in enumerate(_rows(rows)):
        row = {key: _short(value) for key, value in found.items()}
        gap = _interval(row, "difference") if place else ""
        lines.append(f"| {row['token']} | {_recall(row)} | {row['same_class_recall_1']} | {gap} |")
    return "\n".join(lines)


def seeds(rows: str) -> str:
    """The Markdown of what was trained with more than one seed, from the text of seeds.csv."""
    lines = ["| settings | phase | trainings | gated Recall@1 [95%] | between trainings | paired difference to the first [95%] |",
             "|" + " --- |" * 6]
    found = _rows(rows)
    for row in ({key: value if key == "trainings" else _short(value) for key, value in row.items()} for row in found):
        gap = "" if row["settings"] == found[0]["settings"] else _interval(row, "difference")
        lines.append(f"| {row['settings']} | {row['method']} | {row['trainings']} | {_recall(row)} | {row['spread']} | {gap} |")
    return "\n".join(lines)


def arena(table: str, timings: str | None = None) -> str:
    """The Markdown of every other method, from the text of the arena's table2.csv and of what each cost (JSON by method).

    Recall@1 is gated where a method has boxes; ARD's lead is read the same way.
    """
    costs = json.loads(timings or "{}")
    lines = ["| method | given | box acc. | Recall@1 [95%] | Recall@10 | within the class | ARD is ahead by [95%] | queries "
             "| seconds a query |", "|" + " --- |" * 9]
    for name, found in _readings(_rows(table)).items():
        row = {key: _short(value) for key, value in found.items()}
        if found["ard_minus"] and name != "ARD":
            seconds = costs.get(name, {}).get("query_seconds")
            lines.append(f"| {name} | {row['given']} | {row['box_acc']} | {_recall(row)} | {row['recall_10']} "
                         f"| {row['same_class_recall_1']} | {_interval(row, 'ard_minus')} | {found['n_queries']} "
                         f"| {'–' if seconds is None else format(seconds, '.2g')} |")
    return "\n".join(lines)


def release(table: str, more: str | None = None) -> str:
    """The Markdown of Table 2 on the second test set, from the text of release.csv, read as in `arena`, and of the rows that
    21_diagnostics adds, placed as in `results`."""
    lines = ["| method | given | box acc. | Recall@1 [95%] | Recall@5 | Recall@10 | within the class | ARD is ahead by [95%] |",
             "|" + " --- |" * 8]
    for name, row in _readings(_before_ours(_rows(table), _rows(more))).items():
        row = {key: _short(value) for key, value in row.items()}
        lead = "–" if name == "ARD" or row["ard_minus"] == "–" else _interval(row, "ard_minus")
        lines.append(f"| {name} | {row['given']} | {row['box_acc']} | {_recall(row)} | {row['recall_5']} | {row['recall_10']} "
                     f"| {row['same_class_recall_1']} | {lead} |")
    some = _rows(table)[0]
    lines += ["", f"release: {some['n_queries']} queries of {some['n_exemplars']} exemplars, each ranked against "
              f"{some['gallery_size']} images. Intervals resample exemplars."]
    return "\n".join(lines)


def couples(within: str, table: str) -> str:
    """The Markdown of within-image accuracy, from the text of within_image.csv, and of the ranking on the same images, from
    that of couples.csv, gated."""
    lines = ["| method | box on the right one [95%] | on the other one | right of the two | the same, of one drawing "
             "| ARD is ahead by [95%] | Recall@1 [95%] |", "|" + " --- |" * 7]
    ranked = _readings(_rows(table))
    for found in _rows(within):
        row, rank = ({key: _short(value) for key, value in r.items()} for r in (found, ranked[found["method"]]))
        lead = "–" if found["method"] == "ARD" else _interval(row, "ours_minus")
        lines.append(f"| {found['method']} | {_interval(row, 'within_image')} | {row['other']} | {row['of_two']} "
                     f"| {row['same_drawing']} | {lead} | {_recall(rank)} |")
    some, oracle = _rows(within)[0], ranked["class oracle"]
    lines += ["", f"couples: {some['n_queries']} queries, each ranked against {oracle['gallery_size']} images. Intervals resample "
              "images, those of Recall@1 exemplars."]
    return "\n".join(lines)


def diagnostics(changed: str, trust: str) -> str:
    """The Markdown of what each detector reads and how sure it can be, from the texts of changed.csv and trust.csv."""
    lines = ["| detector | other exemplar: X falls | its own image above X | other words: X falls | other box: X falls "
             "| source in the gallery? AUROC | ECE, calibrated | source against its class, AUROC |", "|" + " --- |" * 8]
    by = {(row["method"], row["question"]): {key: _short(value) for key, value in row.items()} for row in _rows(changed)}
    for row in _rows(trust):
        name, known = row["method"], {key: _short(value) for key, value in row.items()}
        asked = [by[name, question] for question in ("exemplar", "text", "box")]
        falls = [_interval(a, "share_fallen", "ci_low", "ci_high") for a in asked]
        lines.append(f"| {name} | {falls[0]} | {by[name, 'exemplar']['partner_above']} | {falls[1]} | {falls[2]} "
                     f"| {known['auroc']} | {known['ece_calibrated']} | {known['same_class_auroc']} |")
    return "\n".join(lines)


def sureness(table: str) -> str:
    """The Markdown of what chances said and what was found, by gallery size, from the text of sureness.csv."""
    lines = ["| images in the gallery | chance that the source is there (half is right) | ECE | AUROC | chance of the strongest image "
             "| it is the source in | ECE |", "|" + " --- |" * 7]
    for found in _rows(table):
        row = {key: _short(value) for key, value in found.items()}
        lines.append(f"| {found['gallery_size']} | {row['sure']} | {row['ece']} | {row['auroc']} | {row['claimed']} | {row['right']} "
                     f"| {row['ece_right']} |")
    return "\n".join(lines)


def presence(table: str) -> str:
    """The Markdown of how well methods tell whether the source is there, from the text of release_presence.csv."""
    lines = ["| method | source in the gallery? AUROC [95%] | less ARD's, paired [95%] | ECE | chance said, on average |",
             "|" + " --- |" * 5]
    for found in _rows(table):
        row = {key: _short(value) for key, value in found.items()}
        less = "–" if found["method"] == "ARD" else _interval(row, "minus")
        lines.append(f"| {found['method']} | {_interval(row, 'auroc')} | {less} | {row['ece']} | {row['sure']} |")
    return "\n".join(lines)


def counterfactuals(told: str, table: str) -> str:
    """The Markdown of who knows what made a picture, from the text of told.csv, and of the ranking of queries with one clear source,
    from that of table.csv, read as in `arena`."""
    lines = ["| method | share of the strongest effect [95%] | ARD's less this, paired [95%] | picks the strongest "
             "| Recall@1 where the source is clear [95%] |", "|" + " --- |" * 5]
    ranked = _readings(_rows(table))
    for found in _rows(told):
        row = {key: _short(value) for key, value in found.items()}
        known = ranked["class oracle" if found["method"] == "a guess" else found["method"]]
        rank = {key: _short(value) for key, value in known.items()}
        lead = "–" if found["method"] == "ARD" else _interval(row, "ours_minus")
        lines.append(f"| {found['method']} | {_interval(row, 'effect')} | {lead} | {row['right']} | {_recall(rank)} |")
    some, oracle = _rows(told)[0], ranked["class oracle"]
    lines += ["", f"{some['n_queries']} queries of {some['n_collections']} collections, {oracle['n_queries']} of them with a clear source, "
              f"ranked against {oracle['gallery_size']} images. Intervals resample collections."]
    return "\n".join(lines)


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
    counted = [f"{n} pictures [95%]" if n > 1 else "one picture [95%]" for n in sizes]
    lines = [f"| {asked[1]} | {method} | {' | '.join(counted)} | {lead} |", "|" + " --- |" * (3 + len(sizes))]
    known = {(row[asked[0]], row["method"], int(row["n_pictures"])): {key: _short(value) for key, value in row.items()} for row in rows}
    for one in dict.fromkeys((row[asked[0]], row["method"]) for row in rows):
        mine = [known.get((*one, n)) for n in sizes]
        last = "–" if one[1] == ours else _interval([row for row in mine if row][-1], "ours_minus")
        cells = [_interval(row, "recall_1") if row else "" for row in mine]
        lines.append(f"| {' | '.join([*one, *cells, last])} |")
    return "\n".join(lines)


def choices(table: str) -> str:
    """The Markdown of what was tried with each method's settings on validation, from the text of choices.csv."""
    lines = ["| method | as used | tried: Recall@1 less that of the settings used, paired [95%] | queries |", "|" + " --- |" * 4]
    rows = _rows(table)
    for name in dict.fromkeys(row["method"] for row in rows):
        used, *others = [{key: value if key == "n_queries" else _short(value) for key, value in row.items()}
                         for row in rows if row["method"] == name]
        tried = "; ".join(f"{r['change']}: {_interval(r, 'minus')}" for r in others)
        lines.append(f"| {name} | {_interval(used, 'recall_1', 'low', 'high')} | {tried} | {used['n_queries']} |")
    return "\n".join(lines)


def study(table: str) -> str:
    """The Markdown of AbC among distractors: Recall@10 for wordings that no mapper saw, from the text of study.csv."""
    rows = [row for row in _rows(table) if row["wording"] == "test"]
    groups = list(dict.fromkeys((row["classes"], row["prompts"]) for row in rows))
    known = {(row["encoder"], row["mapper"], row["classes"], row["prompts"]): _short(row["recall_10"]) for row in rows}
    lines = ["| features | mapper | " + " | ".join(f"{classes} classes, {prompts}" for classes, prompts in groups) + " |",
             "|" + " --- |" * (2 + len(groups))]
    for pair in dict.fromkeys((row["encoder"], row["mapper"]) for row in rows):
        lines.append(f"| {' | '.join(pair)} | {' | '.join(known[(*pair, *group)] for group in groups)} |")
    return "\n".join(lines)


def listed(columns: Mapping[str, str]) -> Callable[[str], str]:
    """A writer of tables as they stand: from the text of a CSV file, the named columns under other titles, title -> name; a value
    with its interval where the table has one."""
    def write(table: str) -> str:
        lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
        for found in _rows(table):
            row = {key: value if key.startswith("n_") else _short(value) for key, value in found.items()}
            cells = [_interval(row, name) if f"{name}_low" in row else row[name] for name in columns.values()]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    return write


def _rows(text: str | None) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text))) if text else []


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
