"""ard.provenance: what counts as a change of code, and which modules a notebook reaches."""

import json

import pytest

from ard import provenance


def write_notebook(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": cell, "outputs": []} for cell in cells]}))
    return path


@pytest.mark.parametrize("a, b, same", [
    ("x = 1  # one\n\n", "x = 1", True),
    ('def f():\n    """Doc."""\n    return 1', 'def f():\n    """Other\n    words."""\n    return 1', True),
    ("s = '# not a comment'", "s = '# another'", False),
    ("x = '''a\n# b'''", "x = '''a\n# c'''", False),
    ("def f():\n    return 1", "def f():\n    return 2", False),
    ("def f(): 'doc'", "def g(): 'doc'", False),
    ("%time x\n# a", "%time x\n# b", False),
])
def test_meaning_ignores_comments_and_docstrings_only(a, b, same):
    assert (provenance.meaning(a) == provenance.meaning(b)) is same


def test_code_of_follows_imports(tmp_path):
    texts = {"__init__": "", "a": "from ard.deep import core", "b": "", "files": "", "unused": "",
             "deep/__init__": "from .core import f", "deep/core": "from ..b import x\nimport ard.files"}
    for name, text in texts.items():
        (tmp_path / "ard" / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ard" / f"{name}.py").write_text(text)
    (tmp_path / "ard" / "deep" / "table.csv").write_text("1")
    book = write_notebook(tmp_path / "notebooks" / "01_x.ipynb", "%matplotlib inline\nimport numpy\nfrom ard import a")
    code = provenance.code_of(book, tmp_path)
    assert list(code) == ["01_x.ipynb", "ard/a.py", "ard/b.py", "ard/deep/__init__.py", "ard/deep/core.py",
                          "ard/deep/table.csv"]
    (tmp_path / "ard" / "b.py").write_text("y = 1")
    assert provenance.code_of(book, tmp_path)["ard/b.py"] != code["ard/b.py"]


def test_code_files_are_one_per_source_notebook(tmp_path):
    write_notebook(tmp_path / "notebooks" / "pretrain" / "02_b.ipynb", "x = 1")
    write_notebook(tmp_path / "notebooks" / "executed" / "01_a.ipynb", "x = 1")
    (tmp_path / ".code").mkdir()
    (tmp_path / ".code" / "09_old.json").write_text("{}")
    assert [p.name for p in provenance.write_code_files(tmp_path, tmp_path / ".code")] == ["02_b.json"]
    assert [p.name for p in (tmp_path / ".code").iterdir()] == ["02_b.json"]


def test_stamp_prints_what_the_runner_tells(monkeypatch, capsys):
    monkeypatch.setenv("ARD_PROVENANCE", json.dumps({"notebook": "01_x", "code_sha256": "abc"}))
    provenance.stamp()
    out = capsys.readouterr().out
    assert "01_x" in out and "abc" in out and "torch" in out and "run by hand" in out


def test_commit_outside_git(tmp_path):
    assert provenance.commit(tmp_path) == "unknown"
