"""ard.run: each trap of notebooks as DVC stages, in small temporary repositories with their own `ard` package."""

import pytest

from ard import notebook as nb
from ard import run
from ard.config import ConfigError
from ard.files import read_json
from ard.stages import Stage

TEXT = """# %% [markdown]
# # Does it run?

# %% parameters
steps: int = 10
flag: bool = True
label: str = ""

# %%
{code}

# %%
import time
from pathlib import Path
from ard.tool import FACTOR
Path("data").mkdir(exist_ok=True)
Path("data/out.txt").write_text(f"{{steps * FACTOR}} {{flag!r}} {{label!r}}")
print("ran at", Path.cwd(), object())
"""
PARAMS = "tiny:\n  steps: 3\n  flag: false\n  label: '007'\n"
DVC = """stages:
  01_tiny:
    cmd: python -m ard.run 01_tiny
    params: [tiny]
    outs: [{data/out.txt: {cache: false}}]
"""
WORK = """import os
from pathlib import Path


def items():
    path = Path(os.environ["ARD_WORK"], "items")
    path.mkdir(exist_ok=True)
    return path
"""


@pytest.fixture
def repo(tmp_path, monkeypatch):
    def build(code="x = 1", params=PARAMS, smoke="tiny:\n  steps: 1\n"):
        texts = {"ard/__init__.py": "", "ard/tool.py": "FACTOR = 2", "params.yaml": params, "params/smoke.yaml": smoke,
                 "dvc.yaml": DVC}
        for name, text in texts.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        nb.write(nb.from_percent(TEXT.format(code=code)), tmp_path / "notebooks" / "01_tiny.ipynb")
        return tmp_path

    monkeypatch.chdir(tmp_path)
    return build


def test_typed_parameters_reach_the_notebook_and_the_copy_is_stable(repo, capsys):
    root = repo()
    copy, side = root / "notebooks/executed/01_tiny.ipynb", root / "notebooks/executed/01_tiny.provenance.json"
    assert run.main(["01_tiny"]) == 0
    assert (root / "data/out.txt").read_text() == "6 False '007'"
    assert "ran at" in capsys.readouterr().out
    first, facts = copy.read_bytes(), read_json(side)
    assert str(root).encode() not in first and b"0x..." in first
    assert facts["parameters"] == {"steps": 3, "flag": False, "label": "007"}
    assert set(facts["code"]) == {"01_tiny.ipynb", "ard/tool.py"} and {len(digest) for digest in facts["code"].values()} == {12}
    assert facts["versions"]["torch"] and len(facts["code_sha256"]) == 64 and facts["seconds"] > 0
    assert not (root / ".run/01_tiny").exists()
    source = root / "notebooks/01_tiny.ipynb"
    nb.write(nb.read(copy), source)  # outputs in the source notebook, as after a run in Jupyter, change nothing
    book = nb.read(source)
    del book.cells[nb.tagged(book, "injected-parameters")[0]]
    nb.write(book, source)
    assert run.main(["01_tiny"]) == 0
    assert copy.read_bytes() == first and read_json(side)["code_sha256"] == facts["code_sha256"]


@pytest.mark.parametrize("params, message", [
    (PARAMS.replace("steps", "stesp"), "params.yaml:tiny: unknown key 'stesp'; did you mean 'steps'?"),
    (PARAMS.replace("  steps: 3\n", ""), "params.yaml:tiny: missing key 'steps' (int)"),
    (PARAMS.replace("false", "'false'"), "params.yaml:tiny.flag: expected bool, found 'false'"),
    (PARAMS.replace("'007'", "7"), "params.yaml:tiny.label: expected str, found 7"),
    (PARAMS.replace("tiny", "tony"), "params.yaml: no section 'tiny'; did you mean 'tony'?"),
])
def test_wrong_parameters_are_refused_before_anything_runs(repo, capsys, params, message):
    root = repo(params=params)
    assert run.main(["01_tiny"]) == 1
    assert message in capsys.readouterr().err and not (root / "data").exists()


@pytest.mark.parametrize("target, old, new, named", [
    ("params.yaml", "steps: 3", "steps: 4", "params.yaml:tiny"),
    ("ard/tool.py", "2", "3", "ard/tool.py"),
    ("notebooks/01_tiny.ipynb", "print(", "print(1,", "notebooks/01_tiny.ipynb"),
])
def test_an_edit_during_the_run_fails_the_stage(repo, capsys, target, old, new, named):
    edit = f"p.write_text(p.read_text().replace({old!r}, {new!r}))"
    root = repo(code=f"from pathlib import Path\np = Path({target!r})\n{edit}")
    assert run.main(["01_tiny"]) == 1
    assert f"changed while the stage ran: {named}" in capsys.readouterr().err
    assert not (root / "notebooks/executed").exists()


def test_harmless_edits_during_the_run_pass(repo):
    repo(code="from pathlib import Path\nPath('ard/tool.py').write_text('FACTOR = 2  # why')\n"
              "Path('params.yaml').write_text(Path('params.yaml').read_text() + 'other: {a: 1}\\n')")
    assert run.main(["01_tiny"]) == 0


@pytest.mark.parametrize("code, message", [
    ("raise SystemExit(0)", "cell 3 ended with SystemExit"),
    ("import os\nos._exit(0)", "Kernel died"),
    ("raise ValueError('no')", "ValueError: no"),
])
def test_early_exits_and_errors_fail_the_stage(repo, capsys, code, message):
    root = repo(code=code)
    assert run.main(["01_tiny"]) == 1
    assert message in capsys.readouterr().err
    assert not (root / "data/out.txt").exists() and not (root / "notebooks/executed").exists()


def test_an_unexecuted_cell_fails_the_stage(repo, capsys):
    root = repo()
    book = nb.read(root / "notebooks/01_tiny.ipynb")
    book.cells[2].metadata["tags"] = ["skip-execution"]
    nb.write(book, root / "notebooks/01_tiny.ipynb")
    assert run.main(["01_tiny"]) == 1
    assert "cell 3 did not run" in capsys.readouterr().err


def test_a_missing_output_fails_the_stage(repo, capsys):
    root = repo()
    (root / "dvc.yaml").write_text(DVC.replace("out.txt", "other.txt"))
    assert run.main(["01_tiny"]) == 1
    assert "did not write data/other.txt" in capsys.readouterr().err


def test_unfinished_work_is_kept_until_something_changes(repo):
    code = ("from ard.work import items\nfolder = items()\nn = len(list(folder.iterdir()))\n"
            "(folder / str(n)).touch()\nassert n >= 1, 'killed'")
    root = repo(code=code)
    (root / "ard/work.py").write_text(WORK)
    assert run.main(["01_tiny"]) == 1
    (root / "params.yaml").write_text(PARAMS.replace("3", "4"))
    assert run.main(["01_tiny"]) == 1
    assert run.main(["01_tiny"]) == 0
    assert run.main(["01_tiny"]) == 1


def test_profiles_work_in_a_folder_of_their_own(repo, capsys):
    root = repo()
    assert run.main(["01_tiny", "--profile", "smoke"]) == 0
    assert (root / "smoke/data/out.txt").read_text() == "2 False '007'" and not (root / "data").exists()
    assert run.main(["01_tiny", "--profile", "smok"]) == 1
    assert "did you mean 'smoke'?" in capsys.readouterr().err
    (root / "params/smoke.yaml").write_text("tiny:\n  stesp: 1\n")
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        run.Run(Stage("01_tiny"), root, "smoke")


def test_all_resumes_after_a_failure_and_starts_anew_after_success(repo, capsys):
    root = repo(code="from pathlib import Path\nassert Path('go').exists(), 'killed'",
                smoke="tiny: {steps: 1}\nshipped: [data/out.txt]\n")
    (root / "data").mkdir()
    (root / "data/out.txt").write_text("shipped")
    assert run.main(["--all", "--profile", "smoke"]) == 1
    (root / "smoke/go").touch()
    assert run.main(["--all", "--profile", "smoke"]) == 0
    assert (root / "smoke/data/out.txt").read_text() == "shipped" == (root / "data/out.txt").read_text()
    assert not (root / "smoke/.run/all.jsonl").exists()
    assert run.main(["--estimate"]) == 0 and "differ; 1 not measured" in capsys.readouterr().out
    assert run.main(["--estimate", "--all"]) == 0 and "===" not in capsys.readouterr().out  # nothing runs
    assert run.main(["--estimate", "dvc.yaml"]) == 0 and "01_tiny" in capsys.readouterr().out
    assert run.main(["--estimate", "12_frist"]) == 1 and "known: 01_tiny" in capsys.readouterr().err


def test_a_pipeline_of_its_own_keeps_what_is_done_until_it_changes(repo, capsys):
    root = repo()
    (root / "own").mkdir()
    (root / "own/dvc.yaml").write_text(DVC)
    (root / "data").mkdir()
    (root / "data/out.txt").write_text("of an earlier run")
    told = ["--all", "own/dvc.yaml"]
    assert run.main(told) == 0 and "=== 01_tiny" in capsys.readouterr().out
    (root / "data/out.txt").write_text("mine")
    assert run.main(told) == 0 and "===" not in capsys.readouterr().out and (root / "data/out.txt").read_text() == "mine"
    (root / "params.yaml").write_text(PARAMS.replace("3", "4"))
    assert run.main(told) == 0 and (root / "data/out.txt").read_text() == "8 False '007'"
    nb.write(nb.from_percent(TEXT.format(code="from pathlib import Path\nassert Path('data/out.txt').exists()")), root / "notebooks/01_tiny.ipynb")
    assert run.main(told) == 0, "another run finds what the last one left"
    assert run.main(["--all", "onw/dvc.yaml"]) == 1 and "did you mean 'own/dvc.yaml'" in capsys.readouterr().err


def test_unfinished_work_is_of_its_code_parameters_and_inputs(repo):
    root = repo()
    (root / "data").mkdir()
    (root / "data/in.txt").write_text("1")

    def work():
        return run.Run(Stage("01_tiny", deps=("data/in.txt",)), root).work

    first = work()
    assert work() == first
    (root / "data/in.txt").write_text("2")
    assert work() != first
