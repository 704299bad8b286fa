"""The stage runner: `python -m ard.run NN_name` runs one notebook with its section of params.yaml and proves what ran.

To add a stage `05_dataset` (a pretraining one the same, in notebooks/pretrain/ and with `frozen: true`):
1. Write `notebooks/05_dataset.ipynb` (as percent text, then `python -m ard.notebook notebooks/05_dataset.py`, and
   remove the text). One cell is tagged `parameters`, with only `name: type = default`; the last cell calls `stamp()`.
2. Give `params.yaml` a section `dataset` (the name without its number) with exactly these keys, and
   `params/smoke.yaml` a section `dataset` with the smaller values. A notebook without parameters needs no section.
3. Add it to `dvc.yaml` at its place in the order of the data flow:
       05_dataset:
         cmd: python -m ard.run 05_dataset
         params: [dataset]
         deps: [.code/05_dataset.json, data/generated]
         outs: [{data/mini-coco: {cache: false}}]
   `.code/05_dataset.json` stands for the notebook's code cells and all of ard that they reach; beside it name data.
The tests then run it with the smoke profile, and fail while one of the three is missing.

A profile other than `mini` puts `params/PROFILE.yaml` over `params.yaml` and works in the folder `PROFILE/`, laid out
like the repository, so it never touches shipped data. Data that no stage makes is copied there; so are, after their own
stage ran, the outs that its list `shipped` names (base models made in seconds are too poor to feed later stages).

Long stages put unfinished work in `ard.files.work_dir(...)` and `publish` it: a killed run goes on where it was, while
code, parameters and inputs stay the same; a finished run leaves no work, so the next one computes everything again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator

import nbformat

from ard import notebook as notebooks
from ard import provenance
from ard.config import ConfigError, nearest
from ard.files import FileError, Ledger, read_json, sha256_bytes, sha256_tree, write_jsonl
from ard.notebook import NotebookError
from ard.stages import (PIPELINES, Stage, copy, find_notebook, prepare_workspace, profile_file, settings, shipped, stages,
                        workspace_of)

# The same in every run of a stage, whoever starts it.
ENVIRONMENT = {
    "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this Python, not one that the user once registered
    "MALLOC_MMAP_THRESHOLD_": "1000000000",  # with the next one: no page faults between training steps
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "OMP_WAIT_POLICY": "passive",  # spinning threads make shared cores 3 to 10 times slower
    "PYTHONHASHSEED": "0",  # sets and dicts of strings in the same order
}
BRIEF = 12  # digits that provenance files keep of a file's hash: enough to tell files apart


@dataclass
class Run:
    """One stage about to run: what it will run with, where, and what must stay the same until its end."""

    stage: Stage
    root: Path
    profile: str = "mini"
    params: Path | None = None
    workspace: Path | None = None
    values: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.root = Path(self.root).resolve()
        self.params = Path(self.params or self.root / "params.yaml")
        self.workspace = Path(self.workspace or workspace_of(self.root, self.profile)).resolve()
        self.notebook = find_notebook(self.stage.name, self.root)
        self.values = self._values()
        self.facts = self._facts()

    def _values(self) -> dict[str, Any]:
        source, where = notebooks.read(self.notebook), f"{self.params.name}:{self.stage.section}"
        try:
            section = settings(self.stage.section, self.profile, self.params)
        except ConfigError:
            if notebooks.parameters(source, self.notebook.name).__dataclass_fields__:
                raise
            section = {}
        return notebooks.typed(source, section, where)

    def _facts(self) -> dict[str, Any]:
        code = provenance.code_of(self.notebook, self.root)
        inputs = {path: sha256_tree(self.workspace / path) for path in self.stage.deps}
        return {"notebook": self.stage.name, "profile": self.profile, "parameters": self.values, "code": code,
                "inputs": inputs, "params_sha256": provenance.digest(self.values),
                "code_sha256": provenance.digest(code), "versions": provenance.versions(),
                "commit": provenance.commit(self.root)}

    @property
    def key(self) -> str:
        """What this run depends on: code, parameters, inputs. Unfinished work of another key is not used."""
        return provenance.digest([self.facts[name] for name in ("code", "parameters", "inputs")])

    @property
    def work(self) -> Path:
        """Folder for unfinished work of this run."""
        return self.workspace / ".run" / self.stage.name / self.key[:16]

    def guarded(self) -> dict[str, str]:
        """Hashes of what may not change while the stage runs: parameters, notebook code, each file of ard."""
        files = sorted((self.root / "ard").rglob("*.py"))
        meanings = {path.relative_to(self.root).as_posix(): provenance.meaning(path.read_text(encoding="utf-8"))
                    for path in files}
        meanings[self.notebook.relative_to(self.root).as_posix()] = provenance.notebook_source(self.notebook)
        hashes = {name: sha256_bytes(text.encode()) for name, text in meanings.items()}
        return {**hashes, f"{self.params.name}:{self.stage.section}": provenance.digest(self._values())}

    def injected(self) -> nbformat.NotebookNode:
        """The notebook as it will be executed, with this run's values."""
        return notebooks.inject(notebooks.read(self.notebook), self.values)

    @contextlib.contextmanager
    def environment(self) -> Iterator[dict[str, str]]:
        """The stage's process environment, until the block ends. Unfinished work of other keys is removed."""
        for path in self.work.parent.glob("*"):
            if path.is_dir() and path != self.work:
                shutil.rmtree(path)
        self.work.mkdir(parents=True, exist_ok=True)
        facts = {name: value for name, value in self.facts.items() if isinstance(value, str)}
        search = os.pathsep.join(filter(None, [str(self.root), os.environ.get("PYTHONPATH")]))
        before = dict(os.environ)
        os.environ.update(ENVIRONMENT, PYTHONPATH=search, ARD_WORK=str(self.work), ARD_PROVENANCE=json.dumps(facts))
        try:
            yield dict(os.environ)
        finally:
            os.environ.clear()
            os.environ.update(before)

    def finish(self, executed: nbformat.NotebookNode | None = None, seconds: float = 0.0) -> None:
        """Check the outputs, write the executed copy and its provenance, remove the work, put shipped outs in place."""
        for out in self.stage.outs:
            if not (self.workspace / out).exists():
                raise NotebookError(f"{self.stage.name}: did not write {out}, which dvc.yaml lists as its output")
        if executed is not None:
            folder = self.workspace / "notebooks" / "executed"
            shown = notebooks.relinked(executed, self.notebook.parent, self.root / "notebooks" / "executed")
            notebooks.write(notebooks.normalise(shown, self.root), folder / self.notebook.name)
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            cost = {"seconds": round(seconds, 1), "peak_gb": round(peak, 2)}
            files = {name: {file: digest[:BRIEF] for file, digest in self.facts[name].items()} for name in ("code", "inputs")}
            write_jsonl(folder / f"{self.stage.name}.provenance.json", [{**self.facts, **files, **cost}])  # on one line: it is long
        shutil.rmtree(self.work.parent)
        for out in set(self.stage.outs) & set(shipped(self.profile, self.params)):
            copy(self.root / out, self.workspace / out)


def execute(run: Run) -> None:
    """Run a stage through papermill. Raises when it fails, leaves early, or its code or parameters change meanwhile."""
    import nbclient.exceptions  # papermill takes a second to import: the notebook tests do without it
    import papermill

    before, start, seen = run.guarded(), time.monotonic(), run.work.parent / "executed.ipynb"
    died = nbclient.exceptions.DeadKernelError
    failures = (papermill.PapermillException, died, nbclient.exceptions.CellControlSignal)
    with run.environment():
        try:
            executed = papermill.execute_notebook(
                run.injected(), str(seen), kernel_name="python3", cwd=str(run.workspace), progress_bar=False,
                stdout_file=sys.stdout, stderr_file=sys.stderr)
        except failures as error:
            raise NotebookError(f"{run.stage.name} failed: {error}\nWhat ran stands in {seen}") from None
    notebooks.check_ran(executed, run.stage.name)
    after = run.guarded()
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        raise NotebookError(f"{run.stage.name}: changed while the stage ran: {', '.join(changed)}; run it again")
    run.finish(executed, time.monotonic() - start)


def run_all(root: Path, profile: str, params: Path, name: str = "") -> None:
    """Run every stage, pretraining included, from nothing; or those of the pipeline `name`, which keeps what is there and runs only what
    has changed. Killed, it goes on where it was when called again. ConfigError: there is no such pipeline."""
    if name not in ("", *PIPELINES):
        raise ConfigError(f"no pipeline '{name}'; {nearest(name, PIPELINES)}")
    pipeline = stages(root, name) if name else stages(root)
    workspace = workspace_of(root, profile)
    prepare_workspace(root, workspace, pipeline, pipeline)
    ledger = Ledger(workspace / ".run" / f"all{name.replace('/', '-')}.jsonl")
    for stage in pipeline:
        run = Run(stage, root, profile, params)
        if f"done {stage.name} {run.key}" in ledger:
            continue
        if not name and f"start {stage.name} {run.key}" not in ledger:
            for out in stage.outs:
                path = workspace / out
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            ledger.add(f"start {stage.name} {run.key}")
        print(f"=== {stage.name}", flush=True)
        execute(run)
        ledger.add(f"done {stage.name} {run.key}")
    if not name:
        ledger.path.unlink()


def print_estimate(root: Path, name: str = "") -> None:
    """Print how long each stage of the main job took when it was last run, or of the pipeline `name`, or the stage `name` of any.

    Read from provenance files. Raises ConfigError when no pipeline has a stage of this name.
    """
    known = stages(root, *([name] if name in PIPELINES else PIPELINES if name else []))
    asked = [stage for stage in known if name in ("", stage.name, *PIPELINES)]
    if name and not asked:
        raise ConfigError(f"no stage '{name}' in {' or '.join(PIPELINES)}; {nearest(name, [s.name for s in known])}")
    total, unknown = 0.0, 0
    for stage in asked:
        file = root / "notebooks" / "executed" / f"{stage.name}.provenance.json"
        seconds = read_json(file).get("seconds") if file.exists() else None
        total, unknown = total + (seconds or 0.0), unknown + (seconds is None)
        print(f"{stage.name:24}{'not measured' if seconds is None else f'{seconds / 60:8.1f} min'}")
    rest = f"; {unknown} not measured, see \"Takes\" in the notebook" if unknown else ""
    print(f"{'all':24}{total / 60:8.1f} min, as measured when they last ran; other machines differ{rest}")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ard.run", description="Run a notebook as a checked stage.")
    parser.add_argument("name", nargs="?", help="notebook, as 06_phase1")
    parser.add_argument("--all", action="store_true", help="every stage from nothing, pretraining included; resumable; name: another "
                        "dvc.yaml, of which what is done stays")
    parser.add_argument("--estimate", action="store_true", help="only print how long stages took when last run; name: also a dvc.yaml")
    parser.add_argument("--profile", default="mini", help="mini (default), or a file of params/ such as smoke")
    parser.add_argument("--params", default="params.yaml", type=Path, help="parameter file")
    given = parser.parse_args(arguments)
    root = Path.cwd()
    if not (given.name or given.all or given.estimate):
        parser.error("name a notebook, or --all")
    try:
        if not (root / "dvc.yaml").is_file():
            raise ConfigError(f"{root}: no dvc.yaml; run from the root of the repository")
        if given.profile != "mini":
            profile_file(given.params.resolve(), given.profile)  # before anything is copied for it
        if given.estimate:
            print_estimate(root, given.name or "")
        elif given.all:
            run_all(root, given.profile, given.params.resolve(), given.name or "")
        else:
            name, pipeline = given.name.removesuffix(".ipynb"), stages(root, *PIPELINES)
            stage = next((stage for stage in pipeline if stage.name == name), Stage(name))
            prepare_workspace(root, workspace_of(root, given.profile), [stage], pipeline)
            execute(Run(stage, root, given.profile, given.params.resolve()))
    except (ConfigError, FileError, NotebookError) as error:
        print(f"ard.run: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
