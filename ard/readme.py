"""`python -m ard.readme`: writes Table 2 and the ablations into README.md between their markers, so that no number there is
typed by hand.

Reads data/tables/table2.csv and data/ablations/rows.csv; without the first the README says that there are no results yet.
"""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

from ard.files import FileError, atomic_write_text

START, END = "<!-- results: written by python -m ard.readme -->", "<!-- end of results -->"
ROWS_START, ROWS_END = "<!-- ablations: written by python -m ard.readme -->", "<!-- end of ablations -->"
NOTHING = "There are no results to show yet: the base models are still in training. `make repro` prints them once they ship."
EVALUATE = "python -m ard.run 08_evaluate"
# What has to run before the evaluation to make a row's model anew.
COMMANDS = {"CountGD (untrained)": "python -m ard.run 14_exemplar_prompted", "ARD-": "python -m ard.run 06_phase1",
            "ARD": "python -m ard.run 07_phase2", "ARD (rendered queries)": "python -m ard.run 07_phase2"}
HEADER = ("| method | box acc. | Recall@1 [95%] | Recall@5 | Recall@10 | class oracle, same gate | within the class "
          "(chance) | command, then `" + EVALUATE + "` |")


def results(table2: str | None) -> str:
    """The Markdown between the markers, from the text of table2.csv (None: not there yet).

    A method with boxes is shown in its gated reading.
    """
    rows = list(csv.DictReader(io.StringIO(table2))) if table2 else []
    if not rows:
        return NOTHING
    first = {}
    for row in sorted(rows, key=lambda r: r["gated"] != "True"):
        first.setdefault(row["method"], row)
    lines = [HEADER, "|" + " --- |" * 8]
    for name in dict.fromkeys(row["method"] for row in rows):
        row = {key: _short(value) for key, value in first[name].items()}
        command = f"`{COMMANDS[name]}`" if name in COMMANDS else ""
        interval = f" [{row['ci_low_recall_1']}, {row['ci_high_recall_1']}]" if row["ci_low_recall_1"] != "–" else ""
        lines.append(f"| {name} | {row['box_acc']} | {row['recall_1']}{interval} | {row['recall_5']} | {row['recall_10']} "
                     f"| {row['class_oracle_recall_1']} | {row['same_class_recall_1']} ({row['same_class_chance']}) "
                     f"| {command} |")
    some = rows[0]
    lines += ["", f"{some['dataset']}, test: {some['n_queries']} queries of {some['n_exemplars']} exemplars, each ranked "
              f"against {some['gallery_size']} images. Intervals resample exemplars."]
    return "\n".join(lines)


def ablations(rows: str) -> str:
    """The Markdown of the ablation table, from the text of rows.csv: ARD after both phases, and its distance to the first row."""
    shown = [row for row in csv.DictReader(io.StringIO(rows)) if row["method"] == "ARD"]
    lines = ["| row | gated Recall@1 [95%] | within the class | difference to the first row, paired [95%] |", "|" + " --- |" * 4]
    for number, row in enumerate({key: _short(value) for key, value in row.items()} for row in shown):
        gap = f"{row['difference']} [{row['difference_low']}, {row['difference_high']}]" if number else ""
        lines.append(f"| {row['row']} | {row['recall_1']} [{row['ci_low']}, {row['ci_high']}] | {row['same_class_recall_1']} | {gap} |")
    return "\n".join(lines)


def filled(readme: str, table2: str | None, rows: str | None = None) -> str:
    """The README with its results replaced, and its ablations where `rows` (the text of rows.csv) is given.

    Raises FileError when the markers are not there, once each and in order.
    """
    page = _between(readme, START, END, results(table2))
    return page if rows is None else _between(page, ROWS_START, ROWS_END, ablations(rows))


def _between(readme: str, start: str, end: str, text: str) -> str:
    if readme.count(start) != 1 or readme.count(end) != 1 or readme.index(start) > readme.index(end):
        raise FileError(f"README.md: expected one line '{start}' and after it one line '{end}'")
    head, tail = readme.split(start)[0], readme.split(end)[1]
    return f"{head}{start}\n{text}\n{end}{tail}"


def main(root: Path = Path(".")) -> int:
    """Fill README.md from the two tables; returns the exit status."""
    readme = root / "README.md"
    table2, rows = (path.read_text(encoding="utf-8") if path.is_file() else None
                    for path in (root / "data/tables/table2.csv", root / "data/ablations/rows.csv"))
    try:
        atomic_write_text(readme, filled(readme.read_text(encoding="utf-8"), table2, rows))
    except FileError as error:
        print(f"ard.readme: {error}", file=sys.stderr)
        return 1
    return 0


def _short(value: str) -> str:
    """Three digits of a number; a dash for nothing.

    >>> _short("0.123456"), _short(""), _short("ARD")
    ('0.123', '–', 'ARD')
    """
    try:
        return f"{float(value):.3f}"
    except ValueError:
        return value or "–"


if __name__ == "__main__":
    sys.exit(main())
