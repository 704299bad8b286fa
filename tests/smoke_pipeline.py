"""The smoke pipeline as it runs in the tests: each notebook under nbval, as soon as the stages that make what it reads have passed."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ard import notebook as nb
from ard.run import Run
from ard.stages import Stage

AT_ONCE = 2
NBVAL = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=900",
         "-q", "--tb=short", "-p", "no:cacheprovider"]


class SmokePipeline:
    """Runs stages at smoke size in a workspace, `AT_ONCE` at a time, in the background; `result` waits for one."""

    def __init__(self, root: Path, workspace: Path, pipeline: Sequence[Stage]):
        self.root, self.workspace, self.pool, self.lock = root, workspace, ThreadPoolExecutor(AT_ONCE), threading.Lock()
        self.found: dict[str, Future] = {stage.name: Future() for stage in pipeline}
        self.waiting = {stage.name: (stage, {other.name for other in upstream(stage, pipeline)}) for stage in pipeline}
        self._start_ready()

    def result(self, name: str) -> None:
        """Wait for a stage. AssertionError with what it printed if it failed, or if one before it did."""
        self.found[name].result()

    def close(self) -> None:
        """Start nothing more, and wait for what runs."""
        with self.lock:
            self.waiting.clear()
        self.pool.shutdown()

    def _start_ready(self) -> None:
        with self.lock:
            passed = {name for name, future in self.found.items() if future.done() and not future.exception()}
            failed = {name for name, future in self.found.items() if future.done() and future.exception()}
            ready = [name for name, (_, before) in self.waiting.items() if before <= passed or before & failed]
            for name in ready:
                stage, before = self.waiting.pop(name)
                self.pool.submit(self._settle, stage, before & failed)

    def _settle(self, stage: Stage, failed: set[str]) -> None:
        try:
            assert not failed, f"did not run, since it reads what {', '.join(sorted(failed))} makes, and that failed"
            self._run(stage)
            self.found[stage.name].set_result(None)
        except BaseException as error:  # a test will raise it
            self.found[stage.name].set_exception(error)
        self._start_ready()

    def _run(self, stage: Stage) -> None:
        run = Run(stage, self.root, "smoke", workspace=self.workspace)
        book = run.injected()
        nb.write(book, self.workspace / run.notebook.name)
        with self.lock, run.environment() as environment:  # it changes that of this process: one at a time
            pass
        done = subprocess.run([*NBVAL, "--rootdir", str(self.workspace), run.notebook.name], cwd=self.workspace, env=environment,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        cells = sum(cell.cell_type == "code" for cell in book.cells)
        assert re.search(rf"^{cells} passed", done.stdout, re.MULTILINE), f"{cells} cells expected:\n{done.stdout[-2000:]}"
        run.finish()


def upstream(stage: Stage, pipeline: Sequence[Stage]) -> list[Stage]:
    """The other stages of a pipeline that make what a stage reads."""
    return [other for other in pipeline if other != stage and reads(stage, other)]


def reads(stage: Stage, other: Stage) -> bool:
    """Whether a stage reads what another one makes: that file or folder, what lies in it, or a folder that it lies in."""
    return any(f"{dep}/".startswith(f"{out}/") or f"{out}/".startswith(f"{dep}/") for dep in stage.deps for out in other.outs)
