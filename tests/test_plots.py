"""Pictures: the same bytes for the same data, a colour for every row, and every figure draws."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

from ard import gallery_figures, plots, report  # noqa: E402
from ard.config import load_params  # noqa: E402
from ard.diagnostics import change_summary  # noqa: E402
from ard.evaluation import ROWS  # noqa: E402
from tests.test_evaluation import answered  # noqa: E402
from tests.toy_attribution import ROOT  # noqa: E402


def test_every_row_has_its_own_colour():
    trained = load_params(ROOT / "params.yaml", "diagnostics")["rows"]
    assert set(ROWS) | {report.CROPS_RENDERED, *trained} == set(plots.COLOURS)
    assert len({str(c) for c in plots.COLOURS.values()}) == len(plots.COLOURS)


def test_a_bar_for_every_method_and_question():
    rows = [{"question": q, "method": m, "concept_id": str(i), "own": 0.5, "changed": 0.2 + 0.1 * i, "partner_above": True}
            for q in ("exemplar", "box") for m in ("ARD-", "ARD") for i in range(5)]
    figure = plots.share_bars(pd.DataFrame(change_summary(rows, "generated")))
    figure.canvas.draw()
    assert [[bar.get_width() for bar in axes.patches] for axes in figure.axes] == [[0.6, 0.6]] * 2
    assert [axes.get_title() for axes in figure.axes] == ["exemplar", "box"]
    plt.close("all")


def test_bytes_are_stable_and_undated(tmp_path):
    for name in ("a", "b"):
        figure, axes = plt.subplots()
        axes.plot([1, 2])
        plots.save(figure, tmp_path / f"{name}.png")
    data = (tmp_path / "a.png").read_bytes()
    assert data == (tmp_path / "b.png").read_bytes() and b"Software" not in data and b"matplotlib" not in data
    plt.close("all")


def test_every_figure_draws(dataset):
    answers = answered(dataset)
    outcomes = report.outcomes_of(answers, dataset)
    table = pd.DataFrame(report.table2(outcomes, "toy"))
    results = {(r["method"], r["sample_id"]): r for r in report.query_rows(answers, outcomes)}
    some = gallery_figures.illustrative(results, dataset.samples["test"], 3)
    assert len({s.class_name for s in some}) == 3
    validation = [{"step": s, "recall_1": 0.1, "same_class_recall_1": 0.2, "box_acc": 0.5, "same_class_chance": 0.1}
                  for s in (0, 5)]
    figures = [plots.curves([{"step": 1, "loss": 1.0}], validation, ["loss"]), plots.recall_bars(table),
               plots.profile_lines(pd.DataFrame(report.profiles(outcomes)), ["ARD", "AbC"]),
               plots.strata_bars(pd.DataFrame(report.strata(outcomes)), ["ARD", "crop cosine"], ["medium", "area"]),
               plots.table_figure(table[["method", "box_acc"]], "t"),
               gallery_figures.answers_figure(dataset, "test", results, some, ["ARD", "AbC"]),
               gallery_figures.concepts_figure(dataset, "test", 1, queries=2)]
    for figure in figures:
        figure.canvas.draw()
    framed = [axes for axes in figures[5].axes if axes.patches or axes.images]
    assert len(framed) == 3 * 2 * (1 + 6)
    plt.close("all")


def test_wrong_answers_stand_beside_their_queries(dataset):
    samples, images = dataset.samples["test"], dataset.gallery["test"]
    wrong = {"mine": [[s.sample_id, im.image_id, [1, 2, 30, 40] if i else None, 0.5] for i, (s, im) in
                      enumerate(zip(samples[:3], images))], "yours": [[samples[0].sample_id, images[1].image_id, None, 2.0]]}
    figure = gallery_figures.wrong_figure(dataset, "test", wrong, count=2)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(figure.axes) == 2 * 4 and len(shown) == 4 + 2, "a pair of pictures for each answer, at most two a method"
    assert np.array_equal(shown[1].images[0].get_array(), dataset.pixels(images[0].file)) and not shown[1].patches
    assert len(shown[0].patches) == 1 and len(shown[3].patches) == 1
    assert [text.get_text() for axes in shown for text in axes.texts] == ["mine", "yours"], "beside its line, not over a score"
    plt.close("all")


def test_tile_box_is_in_image_pixels():
    _, axes = plt.subplots()
    plots.tile(axes, np.zeros((64, 64, 3), np.uint8), (10, 20, 30, 50))
    assert axes.patches[0].get_bbox().bounds == (9.5, 19.5, 20, 30)
    plt.close("all")
