"""`python -m ard.readme`: writes Table 2 into README.md between its markers, so that no number there is typed by hand.

Reads data/tables/table2.csv; without it the README says that there are no results yet.
"""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

from ard.files import FileError, atomic_write_text

START, END = "<!-- results: written by python -m ard.readme -->", "<!-- end of results -->"
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


def filled(readme: str, table2: str | None) -> str:
    """The README with its results replaced. Raises FileError when the markers are not there, once each and in order."""
    if readme.count(START) != 1 or readme.count(END) != 1 or readme.index(START) > readme.index(END):
        raise FileError(f"README.md: expected one line '{START}' and after it one line '{END}'")
    head, tail = readme.split(START)[0], readme.split(END)[1]
    return f"{head}{START}\n{results(table2)}\n{END}{tail}"


def main(root: Path = Path(".")) -> int:
    """Fill README.md from data/tables/table2.csv; returns the exit status."""
    readme, table2 = root / "README.md", root / "data/tables/table2.csv"
    text = table2.read_text(encoding="utf-8") if table2.is_file() else None
    try:
        atomic_write_text(readme, filled(readme.read_text(encoding="utf-8"), text))
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
