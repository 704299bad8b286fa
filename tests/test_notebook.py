"""ard.notebook: the parameters cell, injection, the ran-to-the-end check, stable executed copies, the percent form."""

import base64
import io
import time

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_output
from PIL import Image

from ard import notebook as nb
from ard.config import ConfigError

TEXT = """# %% [markdown]
# # Does it run?
#
# Yes.

# %% parameters
steps: int = 10  # why ten
lr: float = 1e-3
name: str = "a"
sizes: tuple[int, ...] = (1, 2)
limit: int | None = None

# %%
print(steps)
"""
SECTION = {"steps": 1, "lr": 2, "name": "007", "sizes": [3], "limit": None}


def test_percent_form_round_trips_with_stable_ids():
    book = nb.from_percent(TEXT)
    assert nb.to_percent(book) == TEXT
    assert nbformat.writes(nb.from_percent(TEXT)) == nbformat.writes(book)
    nbformat.validate(book)
    assert nb.tagged(book, "parameters") == [1]
    with pytest.raises(nb.NotebookError, match="unknown cell kind 'raw'"):
        nb.from_percent("# %% raw\nx")


def test_typed_parameters_keep_their_types():
    book = nb.from_percent(TEXT)
    values = nb.typed(book, SECTION, "params.yaml:x")
    assert values == {"steps": 1, "lr": 2.0, "name": "007", "sizes": (3,), "limit": None}
    assert type(values["lr"]) is float
    source = nb.inject(book, values).cells[2].source
    space = {}
    exec(source, space)
    assert {key: space[key] for key in values} == values


@pytest.mark.parametrize("change, message", [
    ({"stesp": 3}, r"params.yaml:x: unknown key 'stesp'; did you mean 'steps'\?"),
    ({"steps": "3"}, "params.yaml:x.steps: expected int"),
])
def test_wrong_sections_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        nb.typed(nb.from_percent(TEXT), {**SECTION, **change}, "params.yaml:x")


def test_missing_key_is_refused_though_the_cell_has_a_default():
    with pytest.raises(ConfigError, match="missing key 'limit'"):
        nb.typed(nb.from_percent(TEXT), {k: v for k, v in SECTION.items() if k != "limit"}, "x")


@pytest.mark.parametrize("line, message", [
    ("steps = 1", "holds only 'name: type = default', found 'steps = 1'"),
    ("steps: integer = 1", "parameter 'steps': name 'integer' is not defined"),
    ("steps: int = 'a'", "default of parameter 'steps'"),
    ("steps: int = open('a')", "default of parameter 'steps'"),
])
def test_wrong_parameter_cells_are_refused(line, message):
    with pytest.raises(nb.NotebookError, match=message):
        nb.parameters(nb.from_percent(f"# %% parameters\n{line}\n"), "01_x")
    with pytest.raises(nb.NotebookError, match="expected one cell tagged 'parameters', found 0"):
        nb.parameters(nb.from_percent("# %%\nx = 1\n"), "01_x")


def ran(*sources, outputs=()):
    book = nb.from_percent("# %% parameters\n\n")
    book.cells += [new_code_cell(source, execution_count=count, outputs=list(outputs))
                   for count, source in enumerate(sources, start=1)]
    return book


def test_check_ran():
    nb.check_ran(ran("a", "b"), "01_x")
    book = ran("a", "b")
    book.cells[-1].execution_count = None
    with pytest.raises(nb.NotebookError, match="01_x: cell 2 did not run"):
        nb.check_ran(book, "01_x")
    book.cells[-1].execution_count = 1
    with pytest.raises(nb.NotebookError, match="out of order"):
        nb.check_ran(book, "01_x")
    with pytest.raises(nb.NotebookError, match="SystemExit"):
        nb.check_ran(ran("a", outputs=[new_output("error", ename="SystemExit", evalue="0", traceback=[])]), "01_x")


def test_normalised_copies_of_equal_runs_are_equal_bytes():
    def run(count, address, root):
        widget = {"application/vnd.jupyter.widget-view+json": {"model_id": address}, "text/plain": f"bar {count}"}
        outputs = [new_output("stream", name="stderr", text=f"{count} it/s"),
                   new_output("stream", name="stdout", text=f"1%\r50%\rdone at {root}/data <x at {address}>\n"),
                   new_output("display_data", data=widget),
                   new_output("execute_result", execution_count=count, data={"text/plain": "3", "image/png": "AAAA"})]
        book = ran("a", outputs=outputs)
        book.cells[1].id, book.cells[1].execution_count = f"random-{count}", count
        book.cells[1].metadata = {"execution": {"shell.execute_reply": f"at {count}"}, "papermill": {"duration": count}}
        book.metadata["papermill"] = {"duration": count}
        return nbformat.writes(nb.normalise(book, root))

    first = run(1, "0x7f0000000001", "/home/one")
    assert first == run(5, "0x7f0000000002", "/home/two")
    assert "done at data <x at 0x...>" in first and "AAAA" in first and "widget" not in first and "it/s" not in first


def test_links_of_a_copy_lead_where_they_led():
    book = nb.from_percent("# %% [markdown]\n# ![a](../figures/a.png) [b](README.md#part) [c](https://d.e/f) [g](#h) [i](/j)\n\n# %%\n'[k](../l)'")
    moved = nb.relinked(book, "/r/notebooks", "/r/notebooks/executed")
    assert moved.cells[0].source == "![a](../../figures/a.png) [b](../README.md#part) [c](https://d.e/f) [g](#h) [i](/j)"
    assert moved.cells[1].source == book.cells[1].source and "../figures/a.png" in book.cells[0].source
    assert nb.relinked(book, "/r/notebooks/one", "/r/notebooks/two").cells[0].source.startswith("![a](../figures/a.png) [b](../one/README.md")


def test_a_table_is_kept_once_and_as_its_reader_sees_it():
    frame = pd.DataFrame({"method": ["ARD"], "recall": [0.5]})
    shown = new_output("display_data", data={"text/html": frame._repr_html_(), "text/plain": repr(frame)})
    [output] = nb.normalise(ran("a", outputs=[shown])).cells[1].outputs
    told = output.data["text/html"]
    assert set(output.data) == {"text/html"} and "<style" not in told and "vertical-align" not in told
    assert all(f">{cell}<" in told for cell in ("method", "recall", "ARD", 0.5)) and told.count("<tr") == 2


def test_broken_notebooks_are_named(tmp_path):
    (tmp_path / "01_x.ipynb").write_text("{")
    with pytest.raises(nb.FileError, match="01_x.ipynb: not a notebook"):
        nb.read(tmp_path / "01_x.ipynb")
    with pytest.raises(nb.FileError, match="no such notebook"):
        nb.read(tmp_path / "02_x.ipynb")


def test_main_makes_and_cleans(tmp_path):
    (tmp_path / "01_x.py").write_text(TEXT)
    nb.main([str(tmp_path / "01_x.py")])
    made = (tmp_path / "01_x.ipynb").read_text()
    book = nb.read(tmp_path / "01_x.ipynb")
    book.cells[2].outputs, book.cells[2].execution_count = [new_output("stream", text="x")], 4
    nb.write(book, tmp_path / "01_x.ipynb")
    nb.main([str(tmp_path / "01_x.ipynb")])
    assert (tmp_path / "01_x.ipynb").read_text() == made


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode() + "\n"


def test_large_pictures_are_normalised_quickly_lightened_and_kept_once():
    noise = np.random.default_rng(0).integers(0, 256, (700, 1000, 3), dtype=np.uint8)
    noise[:200] = (250, 10, 10)
    picture = png(noise)  # a contact sheet in base64 is one line of megabytes
    shown = new_output("display_data", data={"image/png": picture, "image/jpeg": picture, "text/plain": "<Image>"})
    small = new_output("display_data", data={"image/png": png(noise[:8, :8])})
    log = new_output("stream", name="stdout", text="x" * 1_000_000 + "\r" + "done\r\nnext\n")
    started = time.process_time()
    cell = new_code_cell("show()", outputs=[shown, small, log])
    outputs = nb.normalise(nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs
    assert time.process_time() - started < 5  # of this process: other tests run beside it
    assert set(outputs[0].data) == {"image/png", "text/plain"} and outputs[2].text == "done\r\nnext\n"
    light = Image.open(io.BytesIO(base64.b64decode(outputs[0].data["image/png"])))
    assert light.size == (1000, 700) and len(outputs[0].data["image/png"]) < 0.5 * len(picture)
    assert np.abs(np.asarray(light.convert("RGB"), int)[:200] - (250, 10, 10)).max() < 16
    assert outputs[1].data["image/png"] == small.data["image/png"], "small pictures stay as they are"
    once = nb.normalise(nbformat.v4.new_notebook(cells=[new_code_cell("show()", outputs=list(outputs))]))
    assert [o.data for o in once.cells[0].outputs[:2]] == [o.data for o in outputs[:2]], "once is enough"


def test_what_is_injected_stands_in_a_copy_without_outputs():
    book = nb.from_percent(TEXT)
    book.cells[2].outputs, book.cells[2].execution_count = [new_output("stream", text="of an earlier run")], 4
    before = nb.copy.deepcopy(book)
    made = nb.inject(book, nb.typed(book, SECTION, "x"))
    assert book == before and len(made.cells) == 4
    assert all(cell.outputs == [] and cell.execution_count is None for cell in made.cells if cell.cell_type == "code")


def test_a_widget_leaves_nothing_behind():
    bar = new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "50%"})
    kept = nb.normalise(ran("a", outputs=[bar, new_output("stream", name="stdout", text="done\n")]))
    assert [output.output_type for output in kept.cells[1].outputs] == ["stream"]
