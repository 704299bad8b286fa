"""ard.stages: the pipeline read from dvc.yaml, settings of a profile, and the folder that a profile works in."""

import pytest

from ard.config import ConfigError
from ard.files import FileError, atomic_write_text
from ard.stages import Stage, find_notebook, prepare_workspace, settings, shipped, stages

DVC = """stages:
  code: {cmd: python -m ard.provenance}
  10_base:
    frozen: true
    cmd: python -m ard.run 10_base
    deps: [.code/10_base.json, data/world]
    outs: [{data/base: {cache: false}}]
  02_use:
    cmd: python -m ard.run 02_use
    deps: [data/base/weights, data/world]
    outs: [data/use]
    metrics: [{data/use.json: {cache: false}}]
"""


@pytest.fixture
def repo(tmp_path):
    texts = {"dvc.yaml": DVC, "params.yaml": "use: {steps: 3, size: 1}\n", "notebooks/executed/02_use.ipynb": "",
             "params/smoke.yaml": "use: {steps: 1}\nshipped: [data/base]\n", "notebooks/02_use.ipynb": "",
             "data/world/a.txt": "a"}
    for name, text in texts.items():
        atomic_write_text(tmp_path / name, text)
    return tmp_path


def test_stages_are_read_in_order(repo, tmp_path_factory):
    assert stages(repo) == [Stage("10_base", ("data/world",), ("data/base",), True),
                            Stage("02_use", ("data/base/weights", "data/world"), ("data/use", "data/use.json"))]
    assert [stage.section for stage in stages(repo)] == ["base", "use"]
    assert stages(tmp_path_factory.mktemp("empty")) == []


def test_settings_of_a_profile(repo):
    params = repo / "params.yaml"
    assert settings("use", "mini", params) == {"steps": 3, "size": 1} and shipped("mini", params) == []
    assert settings("use", "smoke", params) == {"steps": 1, "size": 1} and shipped("smoke", params) == ["data/base"]
    with pytest.raises(ConfigError, match=r"no profile 'smoek' \(smoek.yaml\); did you mean 'smoke'\?"):
        settings("use", "smoek", params)


def test_a_notebook_is_found_by_name_but_not_its_executed_copy(repo):
    assert find_notebook("02_use", repo) == find_notebook("02_use.ipynb", repo) == repo / "notebooks/02_use.ipynb"
    with pytest.raises(FileError, match=r"no notebook called '02_sue'; did you mean '02_use'\?"):
        find_notebook("02_sue", repo)


def test_a_workspace_gets_what_no_stage_makes(repo):
    prepare_workspace(repo, repo / "smoke", stages(repo), stages(repo))
    assert [p.relative_to(repo / "smoke").as_posix() for p in (repo / "smoke").rglob("*.txt")] == ["data/world/a.txt"]
    (repo / "data/world/a.txt").unlink()
    (repo / "data/world").rmdir()
    with pytest.raises(FileError, match="ships with the repository"):
        prepare_workspace(repo, repo / "other", stages(repo), stages(repo))
