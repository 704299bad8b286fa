"""dvc.yaml and the runner together, in a temporary repository: what makes a stage stale, what a fresh clone runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ard import notebook as nb
from ard.provenance import PLUMBING

ROOT = Path(__file__).parents[1]
DVC = """stages:
  code:
    cmd: python -m ard.provenance
    deps: [ard, notebooks]
    outs: [{.code: {cache: false}}]
  01_a:
    cmd: python -m ard.run 01_a
    params: [a]
    deps: [.code/01_a.json]
    outs: [{data/a.txt: {cache: false}}]
  02_b:
    cmd: python -m ard.run 02_b
    deps: [.code/02_b.json, data/a.txt]
    outs: [{data/b.txt: {cache: false}}]
"""
A = """# %% parameters
size: int = 1

# %%
from pathlib import Path
from ard.one import twice
Path("data").mkdir(exist_ok=True)
Path("data/a.txt").write_text(str(twice(size)))
"""
B = """# %% parameters

# %%
from pathlib import Path
Path("data/b.txt").write_text(Path("data/a.txt").read_text() + "!")
"""


def shell(*command, cwd):
    # `python` of the stages is the one that runs the tests.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def repro(root):
    """Run `dvc repro`; the stages that ran."""
    out = shell(sys.executable, "-m", "dvc", "repro", cwd=root)
    return [line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")]


@pytest.fixture
def repo(tmp_path):
    root = tmp_path / "repo"
    (root / "notebooks" / "pretrain").mkdir(parents=True)
    (root / "ard").mkdir()
    for name in (".gitignore", ".dvcignore", *PLUMBING):
        shutil.copy(ROOT / name, root / name)
    (root / "ard" / "one.py").write_text("def twice(x):\n    return 2 * x\n")
    (root / "dvc.yaml").write_text(DVC)
    (root / "params.yaml").write_text("a: {size: 2}\nother: {x: 1}\n")
    nb.write(nb.from_percent(A), root / "notebooks" / "01_a.ipynb")
    nb.write(nb.from_percent(B), root / "notebooks" / "pretrain" / "02_b.ipynb")
    shell("git", "init", "-q", cwd=root)
    shell(sys.executable, "-m", "dvc", "init", "-q", cwd=root)
    return root


def test_only_real_changes_make_a_stage_stale(repo, tmp_path):
    assert repro(repo) == ["code", "01_a", "02_b"]
    assert (repo / "data/b.txt").read_text() == "4!"
    assert repro(repo) == []

    book = nb.read(repo / "notebooks/01_a.ipynb")
    book.cells[1].execution_count = 7
    nb.write(book, repo / "notebooks/01_a.ipynb")
    (repo / "ard/one.py").write_text("def twice(x):\n    # two of it\n    return 2 * x\n")
    (repo / "params.yaml").write_text("a: {size: 2}\nother: {x: 2}\n")
    assert repro(repo) == ["code"]

    (repo / "ard/one.py").write_text("def twice(x):\n    return x + x\n")
    assert repro(repo) == ["code", "01_a"]
    (repo / "params.yaml").write_text("a: {size: 3}\n")
    assert repro(repo) == ["01_a", "02_b"]
    assert (repo / "data/b.txt").read_text() == "6!"

    shell("git", "add", "-A", cwd=repo)
    shell("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x", cwd=repo)
    shell("git", "clone", "-q", str(repo), str(tmp_path / "clone"), cwd=tmp_path)
    assert repro(tmp_path / "clone") == ["code"]
    shell("git", "diff", "--exit-code", cwd=tmp_path / "clone")
