"""The order in which the smoke pipeline runs its stages, without running any."""

import threading
import time
from pathlib import Path

import pytest

from ard.stages import Stage
from tests.smoke_pipeline import AT_ONCE, SmokePipeline

CHAIN = [Stage("a", (), ("data/a",)), Stage("b", ("data/a",), ("data/b",)), Stage("c", ("data/b/file",), ("data/c",)),
         Stage("d", (), ("data/d",)), Stage("e", ("data/d",), ()), Stage("f", (), ())]


class Recorded(SmokePipeline):
    def __init__(self, fail=(), held=False):
        self.fail, self.log, self.running, self.most, self.count = fail, [], 0, 0, threading.Lock()
        self.gate = threading.Event()
        if not held:
            self.gate.set()
        super().__init__(Path("."), Path("."), CHAIN)

    def _run(self, stage):
        with self.count:
            self.running += 1
            self.most = max(self.most, self.running)
        self.gate.wait()
        time.sleep(0.02)
        with self.count:
            self.running -= 1
            self.log.append(stage.name)
        assert stage.name not in self.fail, f"{stage.name} broke"


def test_a_stage_runs_once_after_those_it_reads_and_no_more_at_a_time_than_said():
    pipeline = Recorded()
    for stage in CHAIN:
        pipeline.result(stage.name)
    pipeline.close()
    assert sorted(pipeline.log) == list("abcdef") and 1 < pipeline.most <= AT_ONCE
    assert pipeline.log.index("a") < pipeline.log.index("b") < pipeline.log.index("c")
    assert pipeline.log.index("d") < pipeline.log.index("e")


def test_what_reads_a_stage_that_failed_does_not_run_and_says_so():
    pipeline = Recorded(fail=("b",))
    for name in "adef":
        pipeline.result(name)
    with pytest.raises(AssertionError, match="b broke"):
        pipeline.result("b")
    with pytest.raises(AssertionError, match="reads what b makes"):
        pipeline.result("c")
    pipeline.close()
    assert "c" not in pipeline.log


def test_closed_early_it_starts_nothing_more():
    pipeline = Recorded(held=True)

    def let_go():
        while pipeline.waiting:
            time.sleep(0.01)
        pipeline.gate.set()

    threading.Thread(target=let_go).start()
    pipeline.close()
    assert sorted(pipeline.log) == ["a", "d", "f"] and pipeline.running == 0, "what waits for nothing had been handed in"
