"""The pipeline as data: the notebook stages of dvc.yaml, their notebooks and settings, a profile's workspace."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ard.config import ConfigError, load_params, nearest, read_yaml
from ard.files import FileError
from ard.provenance import source_notebook

COMMAND = "python -m ard.run "
PIPELINES = ("dvc.yaml", "ablations/dvc.yaml", "own/dvc.yaml")  # the main job, and what is run only when asked

@dataclass(frozen=True)
class Stage:
    """One notebook stage of dvc.yaml: data dependencies and outputs, relative to the repository or workspace."""

    name: str
    deps: tuple[str, ...] = ()
    outs: tuple[str, ...] = ()
    frozen: bool = False

    @property
    def section(self) -> str:
        """Its section of params.yaml: `phase1` for `06_phase1`."""
        return self.name.split("_", 1)[-1]


def stages(root: Path, *files: str) -> list[Stage]:
    """The notebook stages of dvc.yaml in its order, which is the order of the data flow; `files` names other pipelines."""
    def paths(items: list) -> list[str]:
        return [item if isinstance(item, str) else next(iter(item)) for item in items]

    listed = [root / name for name in files or ("dvc.yaml",)]
    found = []
    for name, entry in (pair for file in listed if file.exists() for pair in (read_yaml(file).get("stages") or {}).items()):
        if str(entry.get("cmd", "")).startswith(COMMAND):
            deps = [path for path in paths(entry.get("deps", [])) if not path.startswith(".code/")]
            outs = [path for kind in ("outs", "metrics", "plots") for path in paths(entry.get(kind, []))]
            found.append(Stage(name, tuple(deps), tuple(outs), bool(entry.get("frozen"))))
    return found


def find_notebook(name: str, root: Path) -> Path:
    """The notebook called `name` (with or without .ipynb) below notebooks/. Raises FileError naming the nearest one."""
    sources = [path for path in (root / "notebooks").rglob("*.ipynb") if source_notebook(path.relative_to(root))]
    found = [path for path in sources if path.stem == name.removesuffix(".ipynb")]
    if len(found) != 1:
        problem = f"{len(found)} notebooks" if found else "no notebook"
        raise FileError(f"notebooks/: {problem} called '{name}'; {nearest(name, [path.stem for path in sources])}")
    return found[0]


def settings(section: str, profile: str, params: Path) -> dict[str, Any]:
    """Section `section` of params.yaml with the values of `params/PROFILE.yaml` beside it put over it, key by key."""
    over = {} if profile == "mini" else load_params(profile_file(params, profile))
    return {**load_params(params, section), **(over.get(section) or {})}


def profile_file(params: Path, profile: str) -> Path:
    """Where a profile's values stand. Raises ConfigError naming the nearest profile."""
    file = params.parent / "params" / f"{profile}.yaml"
    if not file.is_file():
        known = ["mini", *(path.stem for path in file.parent.glob("*.yaml"))]
        raise ConfigError(f"no profile '{profile}' ({file.name}); {nearest(profile, known)}")
    return file


def shipped(profile: str, params: Path) -> list[str]:
    """Outs that the later stages of a profile take from the repository."""
    return [] if profile == "mini" else load_params(profile_file(params, profile)).get("shipped") or []


def copy(source: Path, target: Path) -> None:
    """Copy a file or folder in place of what stands at `target`. Raises FileError when there is nothing to copy."""
    if not source.exists():
        raise FileError(f"{source}: no such file or folder; it ships with the repository: git checkout it")
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)


def workspace_of(root: Path, profile: str) -> Path:
    """Where a profile works: the repository itself for `mini`, a folder of the profile's name in it for the others."""
    return root if profile == "mini" else root / profile


def prepare_workspace(root: Path, workspace: Path, wanted: list[Stage], pipeline: list[Stage]) -> None:
    """Copy data that the `wanted` stages need and no stage of the pipeline makes into a profile's workspace, once."""
    made = {out for stage in pipeline for out in stage.outs}
    for dep in sorted({dep for stage in wanted for dep in stage.deps}):
        inside = any(dep == out or dep.startswith(f"{out}/") for out in made)
        if workspace != root and not inside and not (workspace / dep).exists():
            copy(root / dep, workspace / dep)
