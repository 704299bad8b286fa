"""Figures of AbC's own evaluation: the supplement's 1 and 5 and the main text's 6, in our terms.

Used by notebook 22; draws what `ard.baselines.abc_study` found, computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ard.gallery_figures import shown
from ard.plots import TRUTH


def spread_lines(spreads: pd.DataFrame) -> Figure:
    """Mean share of influence by place, before calibration (dashed) and after, a panel for each encoder."""
    encoders = list(spreads["encoder"].unique())
    figure, panels = plt.subplots(1, len(encoders), figsize=(3.4 * len(encoders), 3.2), sharey=True, squeeze=False)
    for axes, encoder in zip(panels[0], encoders):
        rows = spreads[spreads["encoder"] == encoder]
        axes.plot(rows["place"], rows["before"], "--", color="black", label="softmax alone")
        axes.plot(rows["place"], rows["after"], color="tab:green", label="calibrated")
        axes.set(xscale="log", yscale="log", xlabel="place", title=encoder)
    panels[0, 0].set_ylabel("share of influence")
    panels[0, 0].legend(fontsize=9)
    figure.tight_layout()
    return figure


def mapper_bars(table: pd.DataFrame, metric: str) -> Figure:
    """`metric` of each mapper over each encoder: classes seen and unseen in training side by side, prompts one below the
    other."""
    grid = sns.catplot(table, kind="bar", x="encoder", y=metric, hue="mapper", row="prompts", col="classes", errorbar=None,
                       height=2.6, aspect=1.9, palette="colorblind")
    grid.set_titles("{row_name} prompts, {col_name} classes", size=11)
    return grid.figure


def crowd_figure(rows: Sequence[tuple[str, np.ndarray, int, int, Sequence[tuple[int, float]]]],
                 picture: Callable[[int], np.ndarray]) -> Figure:
    """For each row its query, its exemplar in a red frame with its place, and the images with most influence, with their shares.

    rows: title, query (H, W, 3) uint8, the exemplar's column and place, (column, share) of the strongest, equally many in each
    row. picture: column -> (H, W, 3) uint8.
    """
    width = 2 + len(rows[0][-1])
    figure, panels = plt.subplots(len(rows), width, figsize=(1.25 * width, 1.5 * len(rows)), squeeze=False)
    for line, (title, query, exemplar, place, strongest) in zip(panels, rows):
        shown(line[0], query, None, title)
        shown(line[1], picture(exemplar), None, f"exemplar:\nplace {place}", TRUTH)
        for axes, (column, share) in zip(line[2:], strongest):
            shown(axes, picture(column), None, f"{share:.1%}", TRUTH if column == exemplar else None)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.95, wspace=0.08, hspace=0.4)
    return figure
