"""Notebooks as data: the typed parameters cell, injected values, the check that every cell ran, stable executed copies.

The stage runner and the notebook tests are built on it. `python -m ard.notebook FILE.py ...` makes `.ipynb` from the
percent form in which notebooks are comfortably written (`# %% [markdown]`, `# %%`, `# %% parameters`).
"""

from __future__ import annotations

import ast
import base64
import copy
import dataclasses
import io
import os
import re
import sys
import typing
from pathlib import Path
from typing import Any

import nbformat
import oxipng
from nbformat import NotebookNode
from PIL import Image

from ard.config import ConfigError, from_dict
from ard.files import FileError, PathLike, atomic_write_text

TYPES = {"int": int, "float": float, "bool": bool, "str": str, "list": list, "dict": dict, "tuple": tuple, "None": None,
         "Literal": typing.Literal, "Any": typing.Any}
COLOURS = 48  # of the pictures in executed notebooks: drawings and charts look the same, and take a third less than in 256
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|[#/])[^)\s]+")  # where a Markdown link leads, if that is relative
STYLE = re.compile(r"<style scoped>.*?</style>\s*", re.DOTALL)  # that pandas puts before each table


class NotebookError(RuntimeError):
    """A notebook that broke a rule or did not run to its end: the message names the notebook and cell."""


def read(path: PathLike) -> NotebookNode:
    """Read a notebook (format 4). Raises FileError when it is missing or broken."""
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise FileError(f"{path}: no such notebook") from None
    except Exception as error:  # nbformat raises many kinds; the reader needs the file's name
        raise FileError(f"{path}: not a notebook: {error}") from None


def write(notebook: NotebookNode, path: PathLike) -> Path:
    """Write a notebook atomically, in nbformat's stable form."""
    return atomic_write_text(path, nbformat.writes(notebook) + "\n")


def tagged(notebook: NotebookNode, tag: str) -> list[int]:
    """Indices of the cells that carry `tag`."""
    return [i for i, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", [])]


def parameters(notebook: NotebookNode, where: str) -> type:
    """The dataclass of a notebook's one `parameters` cell of lines `steps: int = 100`; its fields have no defaults."""
    cells = tagged(notebook, "parameters")
    if len(cells) != 1:
        raise NotebookError(f"{where}: expected one cell tagged 'parameters', found {len(cells)}")
    fields = []
    for line in ast.parse(notebook.cells[cells[0]].source).body:
        if isinstance(line, (ast.Import, ast.ImportFrom)):
            continue
        if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value):
            found = ast.unparse(line)
            raise NotebookError(f"{where}: the parameters cell holds only 'name: type = default', found '{found}'")
        name = line.target.id
        try:
            kind = eval(ast.unparse(line.annotation), {"__builtins__": {}}, TYPES)
        except (NameError, TypeError) as error:
            raise NotebookError(f"{where}: parameter '{name}': {error}; known types: {', '.join(TYPES)}") from None
        try:
            from_dict(dataclasses.make_dataclass("Default", [("value", kind)]), {"value": ast.literal_eval(line.value)})
        except (ConfigError, ValueError) as error:
            raise NotebookError(f"{where}: default of parameter '{name}': {error}") from None
        fields.append((name, kind))
    return dataclasses.make_dataclass("Parameters", fields, frozen=True)


def typed(notebook: NotebookNode, section: dict[str, Any], where: str) -> dict[str, Any]:
    """`section` of params.yaml as the parameters cell types it; ConfigError names a wrong key and the nearest one."""
    kind = parameters(notebook, where)
    made = from_dict(kind, section, where)
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(kind)}


def inject(notebook: NotebookNode, values: dict[str, Any]) -> NotebookNode:
    """A copy with `values` assigned, as Python literals, in a cell after the parameters cell; outputs are removed."""
    notebook = copy.deepcopy(notebook)
    source = "\n".join(["# From params.yaml", *(f"{name} = {value!r}" for name, value in values.items())])
    cell = nbformat.v4.new_code_cell(source, id="injected-parameters", metadata={"tags": ["injected-parameters"]})
    if values:
        notebook.cells.insert(tagged(notebook, "parameters")[0] + 1, cell)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def check_ran(notebook: NotebookNode, where: str) -> None:
    """Raise NotebookError unless every cell with code ran, in order, without an error and without leaving early."""
    count = 0
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        errors = [output for output in cell.outputs if output.output_type == "error"]
        if errors:
            raise NotebookError(f"{where}: cell {index} ended with {errors[0].ename}: {errors[0].evalue}")
        if not cell.execution_count:
            raise NotebookError(f"{where}: cell {index} did not run:\n{cell.source}")
        if cell.execution_count <= count:
            raise NotebookError(f"{where}: cell {index} ran out of order")
        count = cell.execution_count


def normalise(notebook: NotebookNode, root: PathLike = "") -> NotebookNode:
    """A copy with stable bytes: no times, counts, random ids, widgets, stderr (progress), addresses, `root`."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata = _metadata()
    for index, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata = NotebookNode(tags=tags) if tags else NotebookNode()
        cell.id = "injected-parameters" if "injected-parameters" in tags else f"cell-{index}"
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [_stable(output, str(root)) for output in cell.outputs if output.get("name") != "stderr"]
            cell.outputs = [output for output in cell.outputs if output.get("data", True)]
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def relinked(notebook: NotebookNode, source: PathLike, target: PathLike) -> NotebookNode:
    """A copy whose relative links in Markdown cells lead from the folder `target` where they led from `source`."""
    notebook = copy.deepcopy(notebook)
    way = os.path.relpath(source, target)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "markdown"):
        cell.source = LINK.sub(lambda found: Path(os.path.normpath(os.path.join(way, found[0]))).as_posix(), cell.source)
    return notebook


def _last_drawn(text: str) -> str:
    """Text as a terminal shows it: of a progress line that was drawn over, only the last state. Linear in its length.

    >>> _last_drawn("1%\\r2%\\nwindows line\\r\\n")
    '2%\\nwindows line\\r\\n'
    """
    if "\r" not in text:
        return text
    *whole, last = text.split("\n")
    ends = [(line[:-1], "\r") if line.endswith("\r") else (line, "") for line in whole]
    return "\n".join([*(line.rsplit("\r", 1)[-1] + end for line, end in ends), last.rsplit("\r", 1)[-1]])


def _stable(output: NotebookNode, root: str) -> NotebookNode:
    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(item) for item in value]
        if not isinstance(value, str):
            return value
        value = _last_drawn(value)
        return ADDRESS.sub("0x...", value.replace(root + "/", "").replace(root, ".") if root else value)

    if output.output_type == "stream":
        output.text = clean(output.text)
        return output
    output.pop("execution_count", None)
    if output.output_type == "execute_result":
        output.execution_count = None
    output.metadata = NotebookNode()
    data = {kind: value for kind, value in output.data.items() if "widget" not in kind}
    if "image/png" in data:
        data.pop("image/jpeg", None)  # a picture shows itself in both; one is enough
        data["image/png"] = _light(data["image/png"])
    if "text/html" in data:
        data.pop("text/plain", None)  # so does a table
        data["text/html"] = STYLE.sub("", data["text/html"])
    widget = any("widget" in kind for kind in output.data)
    output.data = NotebookNode() if widget else NotebookNode({
        kind: clean(value) if kind.startswith("text/") else value for kind, value in sorted(data.items())})
    return output


def _light(picture: str, limit: int = 4_000) -> str:
    """A base64 PNG above `limit` bytes in `COLOURS` colours: pictures would fill the repository otherwise."""
    data = base64.b64decode(picture)
    if len(data) <= limit or (drawn := Image.open(io.BytesIO(data))).mode == "P" and drawn.getcolors(COLOURS):
        return picture
    buffer = io.BytesIO()
    drawn.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG")
    return base64.b64encode(oxipng.optimize_from_memory(buffer.getvalue(), level=4)).decode() + "\n"


def _metadata() -> NotebookNode:
    return nbformat.from_dict({"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                               "language_info": {"name": "python"}})


def from_percent(text: str) -> NotebookNode:
    """A clean notebook from the percent form: cells open with `# %%`, `# %% [markdown]`, `# %% parameters`."""
    notebook = nbformat.v4.new_notebook(metadata=_metadata())
    parts = re.split(r"^# %%[ \t]*(.*)$", text, flags=re.MULTILINE)
    for index, (kind, body) in enumerate(zip(parts[1::2], parts[2::2])):
        body, kind, identity = body.strip("\n"), kind.strip(), f"cell-{index}"
        if kind == "[markdown]":
            body = "\n".join(re.sub(r"^# ?", "", line) for line in body.splitlines())
            notebook.cells.append(nbformat.v4.new_markdown_cell(body, id=identity))
        elif kind in ("", "parameters"):
            tags = {"tags": [kind]} if kind else {}
            notebook.cells.append(nbformat.v4.new_code_cell(body, id=identity, metadata=tags))
        else:
            raise NotebookError(f"unknown cell kind '{kind}'; known: [markdown], parameters, or nothing for code")
    return notebook


def to_percent(notebook: NotebookNode) -> str:
    """The percent form of a notebook; `from_percent` gives the cleaned notebook back."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append("# %% [markdown]\n" + "\n".join(f"# {line}".rstrip() for line in cell.source.splitlines()))
        else:
            head = "# %% parameters\n" if "parameters" in cell.metadata.get("tags", []) else "# %%\n"
            parts.append(head + cell.source)
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str]) -> None:
    """`FILE.py ...` writes FILE.ipynb beside each; `FILE.ipynb ...` cleans each in place (outputs, counts, ids)."""
    for path in map(Path, arguments):
        text = path.read_text(encoding="utf-8") if path.suffix == ".py" else to_percent(read(path))
        print(write(from_percent(text), path.with_suffix(".ipynb")))


if __name__ == "__main__":
    main(sys.argv[1:])
