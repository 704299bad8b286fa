"""How every picture looks: one colour per method, seaborn charts readable at half size, PNG files with stable bytes.

Used by the notebooks 06 to 09; reads tables and results, computes nothing that a table does not hold.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ard.files import atomic_write_bytes

_PALETTE = sns.color_palette("colorblind")
COLOURS = {
    "chance": "#bbbbbb", "class oracle": "#777777", "drawing oracle": "#999999", "designer oracle": "#aaaaaa",
    "colour histogram": _PALETTE[8], "image cosine": _PALETTE[9], "crop cosine": _PALETTE[0], "AbC": _PALETTE[1],
    "CountGD (untrained)": _PALETTE[5], "ARD-": _PALETTE[4], "ARD": _PALETTE[2], "ARD (rendered queries)": _PALETTE[3],
    "crop cosine (rendered queries)": _PALETTE[6], "ARD (released code)": _PALETTE[7], "ARD (paper)": "#8c6d31"}
# methods of the arena have the colour of their family
FAMILIES = {"AbC": _PALETTE[1], "AbU": "#b5651d", "VFA": "#6b6ecf", "ICPE": "#393b79", "TRAK": "#637939", "DiffSim": "#d6616b",
            "class filter": _PALETTE[0], "GroundingDINO": "#17becf", "CountGD": _PALETTE[5]}
TRUTH, ANSWER = "#d62728", "#1f77b4"  # frame of the true image, box of an answer
DPI = 120


def colour(method: str):
    """A method's own colour, or its family's, or grey.

    >>> colour("AbU (base G)") == FAMILIES["AbU"], colour("ARD") == COLOURS["ARD"], colour("mine")
    (True, True, '#555555')
    """
    found = [shade for family, shade in FAMILIES.items() if family in method]
    return COLOURS.get(method) or (found[-1] if found else "#555555")


def style() -> None:
    """The look of every chart; call it once in a notebook."""
    sns.set_theme(context="notebook", style="whitegrid", rc={"figure.dpi": 80, "savefig.dpi": DPI, "font.size": 12})


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG in 256 colours, without date or version, so that the same figure has the same bytes."""
    drawn, light = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    picture = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(light, "PNG", optimize=True)
    return atomic_write_bytes(path, light.getvalue())


def curves(log: Sequence[Mapping], validation: Sequence[Mapping], losses: Sequence[str]) -> Figure:
    """Training losses by step, and on the right Recall@1 on validation beside what guessing in the class gives."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    for name in losses:
        left.plot([r["step"] for r in log], [r[name] for r in log], marker="o", markersize=3, label=name)
    left.set(xlabel="step", ylabel="training loss")
    left.legend()
    steps = [r["step"] for r in validation]
    for name, colour in (("recall_1", _PALETTE[2]), ("same_class_recall_1", _PALETTE[0]), ("box_acc", _PALETTE[1])):
        right.plot(steps, [r[name] for r in validation], marker="o", color=colour, label=name)
    right.plot(steps, [r["same_class_chance"] for r in validation], "--", color="#777777", label="same_class_chance")
    right.set(xlabel="step", ylabel="validation", ylim=(-0.02, 1.02))
    right.legend(fontsize=9)
    figure.tight_layout()
    return figure


def recall_bars(table: pd.DataFrame) -> Figure:
    """Recall@1 with its 95% interval for each row of Table 2; gated where the method has boxes."""
    rows = table.sort_values("gated", ascending=False, kind="stable").drop_duplicates("method")
    rows = rows.set_index("method").loc[list(dict.fromkeys(table["method"]))].reset_index()
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(rows) + 1))
    for place, row in rows.iterrows():
        axes.barh(place, row["recall_1"], color=colour(row["method"]))
        if pd.notna(row["ci_low_recall_1"]):
            axes.plot([row["ci_low_recall_1"], row["ci_high_recall_1"]], [place, place], color="black", linewidth=1.5)
    oracle = float(rows.loc[rows["method"] == "class oracle", "recall_1"].iloc[0])
    axes.axvline(oracle, linestyle="--", color=COLOURS["class oracle"])
    axes.set(yticks=range(len(rows)), yticklabels=rows["method"], xlim=(0, None),
             xlabel="Recall@1 with 95% interval (gated where the method has boxes); dashed: class oracle")
    axes.invert_yaxis()
    return figure


def profile_lines(profiles: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Share of queries per rank; a method that finds the class and guesses is flat over the first ranks."""
    figure, axes = plt.subplots(figsize=(8, 4))
    for name in methods:
        rows = profiles[profiles["method"] == name]
        axes.plot(rows["ranks"], rows["per_rank"], marker="o", color=COLOURS[name], label=name)
    axes.plot(rows["ranks"], rows["chance_per_rank"], "--", color=COLOURS["chance"], label="chance")
    axes.set(xlabel="rank of the true image", ylabel="share of queries per rank")
    axes.legend(fontsize=9)
    return figure


def strata_bars(strata: pd.DataFrame, methods: Sequence[str], kinds: Sequence[str]) -> Figure:
    """Recall@1 with intervals for each value of each stratum."""
    figure, panels = plt.subplots(1, len(kinds), figsize=(4.2 * len(kinds), 4), sharey=True, squeeze=False)
    for axes, kind in zip(panels[0], kinds):
        part = strata[strata["stratum"] == kind]
        names = sorted(part["value"].unique())
        for shift, name in enumerate(methods):
            rows = part[part["method"] == name].set_index("value").reindex(names)
            x = np.arange(len(names)) + (shift - (len(methods) - 1) / 2) * 0.8 / len(methods)
            axes.bar(x, rows["recall_1"], 0.8 / len(methods), color=COLOURS[name], label=name)
            axes.vlines(x, rows["ci_low_recall_1"], rows["ci_high_recall_1"], color="black", linewidth=1)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=9)
        axes.set_title(kind)
    panels[0, 0].set_ylabel("Recall@1")
    panels[0, -1].legend(fontsize=8)
    return figure


def share_bars(changed: pd.DataFrame) -> Figure:
    """Share of queries whose score falls when one thing of the question is changed (`diagnostics.change_summary`)."""
    questions, methods = changed["question"].unique(), changed["method"].unique()
    size = (4.2 * len(questions), 0.4 * len(methods) + 1.4)
    figure, panels = plt.subplots(1, len(questions), figsize=size, sharey=True, squeeze=False)
    for axes, question in zip(panels[0], questions):
        for place, row in enumerate(changed[changed["question"] == question].to_dict("records")):
            axes.barh(place, row["share_fallen"], color=COLOURS[row["method"]])
            if pd.notna(row["ci_low"]):
                axes.plot([row["ci_low"], row["ci_high"]], [place, place], color="black", linewidth=1.5)
        axes.axvline(0.5, linestyle="--", color=COLOURS["chance"])
        axes.set(title=question, xlim=(0, 1), yticks=range(len(methods)), yticklabels=methods, xlabel="share whose score falls")
    panels[0][0].invert_yaxis()
    return figure


def table_figure(table: pd.DataFrame, title: str) -> Figure:
    """A table as a picture; numbers with three digits after the point."""
    def text(value) -> str:
        return f"{value:.3f}" if isinstance(value, float) and pd.notna(value) else "–" if pd.isna(value) else str(value)
    figure, axes = plt.subplots(figsize=(1.1 * len(table.columns) + 2, 0.24 * len(table) + 0.5))
    axes.axis("off")
    drawn = axes.table([[text(v) for v in row] for row in table.itertuples(index=False)], colLabels=list(table.columns),
                       loc="center", cellLoc="center")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(9)
    drawn.auto_set_column_width(range(len(table.columns)))
    for (row, _), cell in drawn.get_celld().items():
        cell.set_linewidth(0.4)
        cell.set_facecolor("#eeeeee" if row == 0 else "white")
    axes.set_title(title)
    return figure


def tile(axes: Axes, image: np.ndarray, box=None, title: str = "", frame: str | None = None,
         colour: str = ANSWER) -> None:
    """One picture (H, W, 3) uint8 without ticks, with a box (xyxy px), a caption and a frame."""
    axes.imshow(image, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.set_title(title, fontsize=8, pad=2)
    if box is not None:
        x0, y0, x1, y1 = box
        axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.8))
    for side in axes.spines.values():
        side.set(visible=frame is not None, edgecolor=frame or "black", linewidth=4)
