"""The smoke pipeline: nbval executes every notebook at smoke size in a folder of its own, in the order in which dvc.yaml says that
they need each other.

Also the rules that every notebook keeps (one question, at most 25 cells of at most 15 lines, no logic), and that
notebooks, dvc.yaml, params.yaml and params/smoke.yaml name each other.
"""

import ast
import importlib
import re
from pathlib import Path

import nbformat
import pytest

from ard import notebook as nb
from ard.config import load_params, read_yaml
from ard.detector.train import TrainSettings
from ard.provenance import source_notebook
from ard.release import customize_config
from ard.stages import PIPELINES, prepare_workspace, settings, stages
from tests.smoke_pipeline import SmokePipeline, reads, upstream

ROOT = Path(__file__).parents[1]
PIPELINE = stages(ROOT, *PIPELINES)
SOURCES = sorted(path for path in (ROOT / "notebooks").rglob("*.ipynb") if source_notebook(path.relative_to(ROOT)))
each_notebook = pytest.mark.parametrize("path", SOURCES, ids=[path.stem for path in SOURCES])


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    prepare_workspace(ROOT, folder, PIPELINE, PIPELINE)
    pipeline = SmokePipeline(ROOT, folder, PIPELINE)
    yield pipeline
    pipeline.close()


@pytest.mark.parametrize("name", [stage.name for stage in PIPELINE])
def test_nbval_runs(name, smoke):
    smoke.result(name)


def test_every_notebook_is_a_stage_and_every_stage_a_notebook():
    assert sorted(path.stem for path in SOURCES) == sorted(stage.name for stage in PIPELINE)
    frozen = {stage.name for stage in PIPELINE if stage.frozen}
    assert frozen == {path.stem for path in SOURCES if path.parent.name in ("pretrain", "release")}


def test_each_stage_depends_on_its_code_its_section_and_earlier_stages():
    entries = {name: entry for file in PIPELINES for name, entry in read_yaml(ROOT / file)["stages"].items()}
    sections = load_params(ROOT / "params.yaml")
    for position, stage in enumerate(PIPELINE):
        entry = entries[stage.name]
        assert entry["cmd"] == f"python -m ard.run {stage.name}"
        assert f".code/{stage.name}.json" in entry["deps"]
        assert entry.get("params", []) == ([stage.section] if stage.section in sections else [])
        late = [other.name for other in PIPELINE[position:] if reads(stage, other)]
        assert not late, f"dvc.yaml: {stage.name} stands before {late}, which make what it reads"


def test_what_a_stage_waits_for_is_what_it_reads():
    before = {stage.name: {other.name for other in upstream(stage, PIPELINE)} for stage in PIPELINE}
    assert before["00_world"] == set() and "07_phase2" in before["08_evaluate"] and "08_evaluate" in before["09_figures"]
    assert "08_evaluate" not in before["07_phase2"] and before["33_couples_table"] >= {"32_couples", "07_phase2"}


def test_smoke_names_every_method_that_the_arena_sets():
    """Its `methods` stand in the place of all of params.yaml's: one that it leaves out has the full size of its defaults."""
    full, small = (load_params(ROOT / name, "arena")["methods"] for name in ("params.yaml", "params/smoke.yaml"))
    assert set(full) <= set(small)


def test_params_name_only_stages_and_every_key_is_explained():
    known = {stage.section for stage in PIPELINE}
    assert set(load_params(ROOT / "params.yaml")) <= known
    assert set(load_params(ROOT / "params" / "smoke.yaml")) <= known | {"shipped"}
    lines = (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines()
    silent = [line for line in lines if re.match(r"\s+[\w-]+:", line) and "#" not in line]
    assert not silent, f"params.yaml: no comment with unit and reason: {silent}"


@pytest.mark.parametrize("profile", sorted(path.stem for path in (ROOT / "params").glob("*.yaml")))
def test_a_profile_has_what_its_notebooks_take(profile):
    over, params = load_params(ROOT / f"params/{profile}.yaml"), ROOT / "params.yaml"
    named = [path for path in SOURCES if path.stem.split("_", 1)[1] in over]
    assert len(named) == len(set(over) - {"shipped"})
    for path in named:
        nb.typed(nb.read(path), settings(path.stem.split("_", 1)[1], profile, params), profile)


@pytest.mark.parametrize("profile", ["paper", "paper_lvis"])
def test_a_profile_of_the_paper_has_its_recipe(profile):
    pairs, detector = (settings(section, profile, ROOT / "params.yaml") for section in ("own_pairs", "own_detector"))
    assert (pairs["templates"], bool(pairs["classes"])) == {"paper": ("coco", True), "paper_lvis": ("groups", False)}[profile]
    recipe = customize_config(pairs["customize"])
    assert (recipe.token_steps, recipe.token_lr, recipe.weight_steps, recipe.batch, recipe.loss, recipe.mask_resize) == (
        400, 5e-4, 400, 1, "published", "nearest") and recipe.frame == recipe.keep == 0
    for phase in ("phase1", "phase2"):
        told = TrainSettings(**{key: value for key, value in detector[phase].items() if key != "k"})
        assert (told.learning_rate, told.clip, told.schedule, told.weight_decay) == (1e-4, 0.1, "step", 1e-4)
    assert detector["phase2"]["k"] == 4 and (pairs["device"], detector["device"]) == ("cuda", "cuda")


@each_notebook
def test_notebook_reads_well(path):
    book = nb.read(path)
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    long = [c.source for c in book.cells if c.cell_type == "code" and "parameters" not in c.metadata.get("tags", [])
            and len(c.source.splitlines()) > 15]
    assert len(book.cells) <= 25 and not long
    title = book.cells[0].source.splitlines()[0]
    assert book.cells[0].cell_type == "markdown" and re.match(r"# .*\?$", title), f"the title is no question: {title!r}"
    assert len(nb.tagged(book, "parameters")) == 1
    assert "stamp()" in code[-1], "the last code cell must print the provenance"
    for node in (node for source in code for node in ast.walk(ast.parse(re.sub(r"(?m)^\s*[%!].*$", "", source)))):
        assert not isinstance(node, ast.ClassDef), f"class {node.name} belongs in ard/"
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 5, f"function {node.name} belongs in ard/"
    story = sum(len(cell.source) for cell in book.cells if cell.cell_type == "markdown")
    assert sum(map(len, code)) <= 4 * story, "more code than story: logic belongs in ard/"


@each_notebook
def test_notebook_source_is_clean(path):
    clean = nbformat.writes(nb.from_percent(nb.to_percent(nb.read(path)))) + "\n"
    assert path.read_text(encoding="utf-8") == clean, f"run: python -m ard.notebook {path.relative_to(ROOT)}"


@each_notebook
def test_what_a_paper_to_code_table_names_is_there(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    rows = re.findall(r"^\|.*\| `([\w.]+)\.(\w+)` \| `(test_\w+)\.(test_\w+)` \|$", text, re.MULTILINE)
    assert bool(rows) == (path.stem in ("06_phase1", "07_phase2"))
    for module, function, file, test in rows:
        assert hasattr(importlib.import_module(f"ard.detector.{module}"), function), (module, function)
        assert f"def {test}(" in (ROOT / "tests/detector" / f"{file}.py").read_text(encoding="utf-8"), (file, test)
