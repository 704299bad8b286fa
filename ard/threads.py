"""Parts of one computation side by side. The mini world's tensors are too small for two threads to share one operation; each thread gets
a part of its own, which is also computed in the same bits on any number of cores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part, Result = TypeVar("Part"), TypeVar("Result")
_lock, _calls, _threads = threading.Lock(), 0, 1  # calls under way, and how many threads torch had before the first of them
_worker = threading.local()


def side_by_side(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """`function` of each part, in order, without gradients; as many at a time as torch has threads, one thread each; inside of a part,
    one after the other. Raises what the function raises. May be called from several threads."""
    global _calls, _threads
    if getattr(_worker, "busy", False):
        return [function(part) for part in parts]
    with _lock:
        _threads = _threads if _calls else torch.get_num_threads()
        _calls += 1
    try:
        with ThreadPoolExecutor(_threads, initializer=_alone) as pool:
            return list(pool.map(torch.no_grad()(function), parts))
    finally:
        with _lock:
            _calls -= 1
            torch.set_num_threads(_threads)  # of this thread, and of those that start later


def _alone() -> None:
    _worker.busy = True
    torch.set_num_threads(1)  # of this thread, but of those that start later, too
