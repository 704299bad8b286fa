"""`ard.readme`: numbers reach README.md and notebooks/README.md from tables only; what is committed agrees with the committed
tables, and what a page links to is there."""

import re
import subprocess
from pathlib import Path

import pytest

from ard import notebook as nb
from ard import markdown_tables as tables
from ard import readme
from ard.evaluation import ROWS
from ard.files import FileError
from ard.metrics import TABLE2_COLUMNS, to_csv
from ard.provenance import source_notebook

ROOT = Path(__file__).parents[1]
START, END = readme.markers("results")
PAGE = f"head\n{START}\nold\n{END}\ntail\n"
STUDIES = "notebooks/README.md"
TABLE2, ROWS_FILE, CHANGED, TRUST = (f"data/{name}.csv" for name in ("tables/table2", "ablations/rows", "diagnostics/changed",
                                                                    "diagnostics/trust"))


def table(methods=("chance", "ARD")):
    row = dict.fromkeys(TABLE2_COLUMNS, 0.25) | {"dataset": "toy", "n_queries": 8, "n_exemplars": 4, "gallery_size": 5}
    rows = [row | {"method": m, "gated": g, "box_acc": 0.5 if m == "ARD" else None, "recall_1": 0.125 if g else 0.375}
            for m in methods for g in ((True, False) if m == "ARD" else (False,))]
    return to_csv(rows, TABLE2_COLUMNS)


def test_rows_are_gated_where_there_is_a_box_and_name_their_command():
    lines = tables.results(table()).splitlines()
    assert lines[2].startswith("| chance | – | 0.375 [0.250, 0.250] |") and lines[2].endswith("|  |")
    assert lines[3].startswith("| ARD | 0.500 | 0.125 ") and "`python -m ard.run 07_phase2`" in lines[3]
    assert len({line.count("|") for line in lines[:4]}) == 1 and "8 queries of 4 exemplars" in lines[-1]
    assert set(tables.COMMANDS) <= set(ROWS)


def test_only_the_part_between_the_markers_is_written(tmp_path):
    (tmp_path / "README.md").write_text(PAGE)
    assert readme.main(tmp_path) == 1, "the page of the studies is not there"
    (tmp_path / "notebooks").mkdir()
    (tmp_path / STUDIES).write_text("no table, no markers\n")
    assert readme.main(tmp_path) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("head\n") and text.endswith("\ntail\n") and "still in training" in text and "old" not in text
    (tmp_path / "data/tables").mkdir(parents=True)
    (tmp_path / "data/tables/table2.csv").write_text(table())
    assert readme.main(tmp_path) == 0 and readme.main(tmp_path) == 0
    assert (tmp_path / "README.md").read_text() == readme.filled(PAGE, {TABLE2: table()}.get)


def test_rows_made_elsewhere_stand_before_ours_with_their_command():
    text = tables.results(table(("chance", "ARD-", "ARD")), table(("ARD (paper)",)))
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert names[2:] == ["chance", "ARD (paper)", "ARD-", "ARD"] and text.count("21_diagnostics") == 1


def test_trainings_with_several_seeds_are_shown_against_the_first():
    cells = "settings,method,trainings,recall_1,ci_low,ci_high,spread,difference,difference_low,difference_high"
    text = tables.seeds(f"{cells}\nas used,ARD,3,.8,.7,.9,.02,0,0,0\npaper,ARD,1,.1,.05,.2,,-.7,-.8,-.6\n")
    assert "| as used | ARD | 3 | 0.800 [0.700, 0.900] | 0.020 |  |" in text
    assert "| paper | ARD | 1 | 0.100 [0.050, 0.200] | – | -0.700 [-0.800, -0.600] |" in text


def test_ablations_stand_between_their_own_markers():
    cells = "row,method,recall_1,ci_low,ci_high,against,difference,difference_low,difference_high,recall_5,same_class_recall_1"
    rows = (f"{cells}\nas used,ARD-,1,1,1,as used,0,0,0,1,1\nas used,ARD,.5,.4,.6,as used,0,0,0,.9,.7\n"
            "paper,ARD,.1,.05,.15,as used,-.4,-.5,-.3,.5,.25\n")
    start, end = readme.markers("ablations")
    page, read = f"head\n{start}\nold\n{end}\nend\n", {TABLE2: table(), ROWS_FILE: rows}.get
    text = readme.filled(page, read, STUDIES)
    assert "| as used | 0.500 [0.400, 0.600] | 0.900 | 0.700 |  |  |" in text and text.endswith(f"{end}\nend\n")
    assert "| paper | 0.100 [0.050, 0.150] | 0.500 | 0.250 | as used | -0.400 [-0.500, -0.300] |" in text and "1.000" not in text
    assert readme.filled(text, read, STUDIES) == text
    with pytest.raises(FileError, match="notebooks/README.md: .*ablations"):
        readme.filled(PAGE, read, STUDIES)


def test_a_pair_of_backbones_is_a_line_with_both_phases():
    cells = "row,method,recall_1,ci_low,ci_high,against,difference,difference_low,difference_high,box_acc,same_class_recall_1"
    rows = (f"{cells}\nlarge,ARD-,.5,.4,.6,small,.1,0,.2,1,1\nlarge,ARD,.6,.5,.7,small,.2,.1,.3,.9,.8\n"
            "small,ARD-,.4,.3,.5,small,0,0,0,1,1\nsmall,ARD,.4,.2,.5,small,0,0,0,.7,.6\n")
    assert tables.backbones(rows).splitlines()[2:] == [
        "| large | 0.500 [0.400, 0.600] | 0.600 [0.500, 0.700] | 0.900 | 0.800 | 0.200 [0.100, 0.300] |",
        "| small | 0.400 [0.300, 0.500] | 0.400 [0.200, 0.500] | 0.700 | 0.600 |  |"]


def test_a_study_asked_twice_has_a_line_for_each_row_beside_the_one_in_use():
    names = [f"{what}_{one}" for one in ("single", "couples") for what in ("recall_1", "minus")] + ["within_image"]
    head = ",".join(["method", *(f"{name}{end}" for name in names for end in ("", "_low", "_high"))])
    used = f"as used{',0.5,0.4,0.6,0,0,0' * 2},0.9,0.8,1"
    rows = f"{head}\n{used}\nbefore{',0.4,0.3,0.5,-0.1,-0.2,0' * 2},0.7,0.6,0.8\n"
    assert tables.asked_twice(rows).splitlines()[2:] == [
        "| as used | 0.500 [0.400, 0.600] |  | 0.500 [0.400, 0.600] |  | 0.900 [0.800, 1.000] |",
        "| before | 0.400 [0.300, 0.500] | -0.100 [-0.200, 0.000] | 0.400 [0.300, 0.500] | -0.100 [-0.200, 0.000] | 0.700 [0.600, 0.800] |"]
    assert "less that in use" in tables.asked_twice(rows) and "less ARD's" in tables.asked_twice(rows, first="ARD's")
    titles, rule, line = tables.asked_twice(f"{head},auroc\n{used},0.85\n").splitlines()
    assert titles.count("|") == rule.count("|") == line.count("|") and "AUROC" in titles and line.endswith("| 0.850 |")
    crowd = "recall_1_crowd,recall_1_crowd_low,recall_1_crowd_high,minus_crowd,minus_crowd_low,minus_crowd_high,auroc_crowd"
    titles, rule, line = tables.asked_twice(f"{head},{crowd},auroc\n{used},.3,.2,.4,0,0,0,0.75,0.85\n").splitlines()
    assert titles.count("|") == rule.count("|") == line.count("|") and titles.index("in a crowd [95%]") < titles.index("among couples")
    assert line == "| as used | 0.500 [0.400, 0.600] |  | 0.300 [0.200, 0.400] |  | 0.500 [0.400, 0.600] |  | 0.900 [0.800, 1.000] | 0.850 | 0.750 |"


def test_a_token_is_a_line_beside_the_one_in_use():
    rows = ("token,recall_1,ci_low,ci_high,difference,difference_low,difference_high,same_class_recall_1\n"
            "one,.8,.7,.9,0,0,0,.95\ngrid,.75,.6,.8,-.05,-.1,.02,.9\n")
    assert tables.tokens(rows).splitlines()[2:] == ["| one | 0.800 [0.700, 0.900] | 0.950 |  |",
                                                    "| grid | 0.750 [0.600, 0.800] | 0.900 | -0.050 [-0.100, 0.020] |"]


def test_the_arena_shows_a_method_once_with_its_price():
    cells = ("method,gated,given,box_acc,recall_1,ci_low_recall_1,ci_high_recall_1,recall_10,same_class_recall_1,ard_minus,"
             "ard_minus_low,ard_minus_high,n_queries")
    rows = (f"{cells}\nchance,False,the truth,,.01,.01,.01,.1,.1,,,,9\nVFA,True,box,.5,.2,.1,.3,.4,.3,.6,.5,.7,9\n"
            "VFA,False,box,.5,.9,.9,.9,.9,.3,.6,.5,.7,9\nARD,False,box,1,1,1,1,1,1,0,0,0,9\n")
    lines = tables.arena(rows, '{"VFA": {"query_seconds": 2.345}}').splitlines()
    assert lines[2:] == ["| VFA | box | 0.500 | 0.200 [0.100, 0.300] | 0.400 | 0.300 | 0.600 [0.500, 0.700] | 9 | 2.3 |"]
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert tables.arena(rows).endswith("| – |")


def test_the_second_test_set_shows_every_row_and_what_it_was_given():
    cells = ("dataset,method,gated,given,box_acc,recall_1,ci_low_recall_1,ci_high_recall_1,recall_5,recall_10,same_class_recall_1,"
             "ard_minus,ard_minus_low,ard_minus_high,n_queries,n_exemplars,gallery_size")
    rows = (f"{cells}\nsome,chance,False,the truth,,.01,.01,.01,.05,.1,.1,,,,9,3,7\nsome,AbC,False,pairs,,.9,.9,.9,.9,.9,.3,-.3,-.5,-.1,9,3,7\n"
            "some,ARD,False,box,1,.8,.7,.9,1,1,1,0,0,0,9,3,7\nsome,ARD,True,box,1,.6,.5,.7,.8,.9,.9,0,0,0,9,3,7\n")
    lines = tables.release(rows).splitlines()
    assert lines[2] == "| chance | the truth | – | 0.010 [0.010, 0.010] | 0.050 | 0.100 | 0.100 | – |"
    assert lines[3].endswith("| -0.300 [-0.500, -0.100] |")
    assert lines[4] == "| ARD | box | 1.000 | 0.600 [0.500, 0.700] | 0.800 | 0.900 | 0.900 | – |"
    assert "some: 9 queries of 3 exemplars, each ranked against 7 images" in lines[-1]
    more = f"{cells}\nsome,ARD (paper),True,box,1,.2,.1,.3,.5,.6,.3,.4,.3,.5,9,3,7\n"
    ours = rows.replace("\nsome,ARD,False", "\nsome,ARD-,True,box,1,.5,.4,.6,.7,.8,.8,.1,0,.2,9,3,7\nsome,ARD,False")
    names = [line.split("|")[1].strip() for line in tables.release(ours, more).splitlines()[2:7]]
    assert names == ["chance", "AbC", "ARD (paper)", "ARD-", "ARD"]


def test_couples_show_which_of_the_two_beside_the_ranking():
    within = ("method,within_image,within_image_low,within_image_high,other,of_two,same_drawing,ours_minus,ours_minus_low,"
              "ours_minus_high,n_queries\ncrop cosine,.4,.3,.5,.2,.667,,.5,.4,.6,9\nARD,.9,.8,1,.1,.9,.8,0,0,0,9\n")
    table = ("method,gated,recall_1,ci_low_recall_1,ci_high_recall_1,gallery_size\nclass oracle,False,.1,.1,.1,7\n"
             "crop cosine,True,.2,.1,.3,7\ncrop cosine,False,.9,.9,.9,7\nARD,True,.6,.5,.7,7\nARD,False,.9,.9,.9,7\n")
    lines = tables.couples(within, table).splitlines()
    assert lines[2] == ("| crop cosine | 0.400 [0.300, 0.500] | 0.200 | 0.667 | – | 0.500 [0.400, 0.600] "
                        "| 0.200 [0.100, 0.300] |")
    assert lines[3] == "| ARD | 0.900 [0.800, 1.000] | 0.100 | 0.900 | 0.800 | – | 0.600 [0.500, 0.700] |"
    assert "9 queries, each ranked against 7 images" in lines[-1]


def test_diagnostics_are_a_line_for_each_detector():
    shares = (("text", .6, ""), ("exemplar", .9, .7), ("box", .8, ""))
    changed = "question,method,share_fallen,ci_low,ci_high,partner_above\n" + "".join(
        f"{question},ARD,{share},.1,.2,{above}\n" for question, share, above in shares)
    lines = tables.diagnostics(changed, "method,auroc,ece_calibrated,same_class_auroc\nARD,.75,.05,.85\n").splitlines()
    assert lines[-1] == ("| ARD | 0.900 [0.100, 0.200] | 0.700 | 0.600 [0.100, 0.200] | 0.800 [0.100, 0.200] "
                         "| 0.750 | 0.050 | 0.850 |")
    assert len({line.count("|") for line in lines}) == 1


SURENESS = "gallery_size,n_queries,sure,ece,auroc,right,claimed,ece_right\n5,9,.49,.04,.95,.47,.46,.03\n100,9,.5,.1,.75,.3,.35,.2\n"
PRESENCE = ("method,n_queries,auroc,auroc_low,auroc_high,minus,minus_low,minus_high,ece,sure\nARD,9,.8,.7,.9,0,0,0,.05,.49\n"
            "rival,9,.75,.6,.8,-.05,-.1,.01,.11,.52\n")


@pytest.mark.parametrize("write, rows, shown", [
    (tables.sureness, SURENESS, ["| 5 | 0.490 | 0.040 | 0.950 | 0.460 | 0.470 | 0.030 |",
                                 "| 100 | 0.500 | 0.100 | 0.750 | 0.350 | 0.300 | 0.200 |"]),
    (tables.presence, PRESENCE, ["| ARD | 0.800 [0.700, 0.900] | – | 0.050 | 0.490 |",
                                 "| rival | 0.750 [0.600, 0.800] | -0.050 [-0.100, 0.010] | 0.110 | 0.520 |"])])
def test_sureness_and_presence_are_a_line_for_each_row(write, rows, shown):
    lines = write(rows).splitlines()
    assert lines[2:] == shown and len({line.count("|") for line in lines}) == 1


def test_counterfactuals_put_the_cause_beside_the_rank_and_a_guess_beside_the_class_oracle():
    told = ("method,right,right_low,right_high,effect,effect_low,effect_high,ours_minus,ours_minus_low,ours_minus_high,n_queries,"
            "n_collections\na guess,.25,.25,.25,.7,.6,.8,.2,.1,.3,9,3\nARD,.6,.5,.7,.9,.8,1,0,0,0,9,3\n")
    table = ("method,gated,recall_1,ci_low_recall_1,ci_high_recall_1,n_queries,gallery_size\nclass oracle,False,.1,.1,.1,4,100\n"
             "ARD,False,.9,.8,1,4,100\nARD,True,.5,.4,.6,4,100\n")
    lines = tables.counterfactuals(told, table).splitlines()
    assert lines[2:4] == ["| a guess | 0.700 [0.600, 0.800] | 0.200 [0.100, 0.300] | 0.250 | 0.100 [0.100, 0.100] |",
                          "| ARD | 0.900 [0.800, 1.000] | – | 0.600 | 0.500 [0.400, 0.600] |"]
    assert lines[-1].startswith("9 queries of 3 collections, 4 of them with a clear source, ranked against 100 images.")
    assert len({line.count("|") for line in lines[:4]}) == 1
    with pytest.raises(KeyError, match="rival"):  # not ranked: never shown with another's number
        tables.counterfactuals(told.replace("ARD,", "rival,"), table)


def test_pictures_asked_together_are_a_column_for_each_number_and_the_lead_is_with_the_most():
    columns = ",".join(["dataset,method,n_pictures", *(f"{x},{x}_low,{x}_high" for x in ("recall_1", "ours_minus"))])
    lines = ["a,rival,1,.5,.4,.6,.2,.1,.3", "a,rival,5,.6,.5,.7,.3,.2,.4", "a,ours,1,.7,.6,.8,0,0,0", "a,ours,5,.9,.8,1,0,0,0",
             "b,rival,1,.25,.2,.3,.1,0,.2", "b,ours,1,.35,.3,.4,0,0,0", ""]
    table = "\n".join([columns, *(line.replace("ours", '"ARD, close-up"') for line in lines)])
    lines = tables.together(table).splitlines()
    assert lines[0].startswith("| set | method | one picture [95%] | 5 pictures [95%] |") and len({line.count("|") for line in lines}) == 1
    assert lines[2:] == ["| a | rival | 0.500 [0.400, 0.600] | 0.600 [0.500, 0.700] | 0.300 [0.200, 0.400] |",
                         "| a | ARD, close-up | 0.700 [0.600, 0.800] | 0.900 [0.800, 1.000] | – |",
                         "| b | rival | 0.250 [0.200, 0.300] |  | 0.100 [0.000, 0.200] |",
                         "| b | ARD, close-up | 0.350 [0.300, 0.400] |  | – |"]


def test_ways_are_held_against_the_one_in_use_which_comes_first():
    columns = ",".join(["gallery,method,n_pictures", *(f"{x},{x}_low,{x}_high" for x in ("recall_1", "ours_minus"))])
    table = f"{columns}\nown,once,2,.9,.8,1,0,0,0\nown,each time,2,.8,.7,.9,.1,0,.2\n"
    assert tables.ways(table).splitlines() == [
        "| images | way | 2 pictures [95%] | way in use less this, with the most, paired [95%] |", "| --- | --- | --- | --- |",
        "| own | once | 0.900 [0.800, 1.000] | – |", "| own | each time | 0.800 [0.700, 0.900] | 0.100 [0.000, 0.200] |"]


def test_a_listed_table_has_intervals_where_there_are_and_counts_as_they_are():
    table = "kind,n_exemplars,share,share_low,share_high,other,left_out\nsize 0.05,20,.5,.25,.75,.125,9\nnoise,7,,,,nan,9\n"
    assert tables.listed({"condition": "kind", "of": "n_exemplars", "share [95%]": "share", "other": "other"})(table).splitlines() == [
        "| condition | of | share [95%] | other |", "| --- | --- | --- | --- |", "| size 0.05 | 20 | 0.500 [0.250, 0.750] | 0.125 |",
        "| noise | 7 | – [–, –] | – |"]
    with pytest.raises(KeyError, match="nothing"):
        tables.listed({"a": "nothing"})(table)


def test_the_study_shows_what_no_mapper_saw():
    rows = "encoder,mapper,classes,prompts,wording,recall_10\n" + "".join(
        f"vae,{mapper},{classes},medium,{wording},{value}\n" for mapper, classes, wording, value in (
            ("none", "seen", "test", .1), ("none", "seen", "train", .9), ("none", "unseen", "test", .2),
            ("MLP", "seen", "test", .3), ("MLP", "unseen", "test", .4)))
    assert tables.study(rows).splitlines() == [
        "| features | mapper | seen classes, medium | unseen classes, medium |", "| --- | --- | --- | --- |",
        "| vae | none | 0.100 | 0.200 |", "| vae | MLP | 0.300 | 0.400 |"]


def test_missing_markers_are_named(tmp_path, capsys):
    with pytest.raises(FileError, match="expected one line"):
        readme.filled("no markers", lambda file: None)
    (tmp_path / "README.md").write_text("no markers")
    assert readme.main(tmp_path) == 1 and "README.md" in capsys.readouterr().err


@pytest.mark.parametrize("name", readme.PAGES)
def test_committed_pages_show_the_committed_tables(name):
    def committed(path):
        done = subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else None

    page = committed(name)
    if page is None:
        pytest.skip("not a git clone")
    assert readme.filled(page, committed, name) == page, "run: python -m ard.readme"


@pytest.mark.parametrize("name", readme.PAGES)
def test_links_between_pages_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert links
    for link in links:
        file, _, section = link.partition("#")
        target = (ROOT / name).parent / file if file else ROOT / name
        assert target.exists(), link
        titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if section else []
        assert not section or section in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], link


def test_every_notebook_is_listed_with_its_question():
    text, stages = (ROOT / STUDIES).read_text(encoding="utf-8"), ROOT / "notebooks"
    for path in (path for path in stages.rglob("*.ipynb") if source_notebook(path.relative_to(ROOT))):
        question = nb.read(path).cells[0].source.splitlines()[0].removeprefix("# ")
        assert f"| [`{path.stem}`](executed/{path.name}) | {question} |" in text


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL))
def test_the_examples_run_as_they_stand(block, monkeypatch, capsys):
    if not (ROOT / "data/models/ard/model.safetensors").is_file():
        pytest.skip("the shipped detector is not here")
    monkeypatch.chdir(ROOT)
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()
