"""Parts of one computation side by side. The mini world's tensors are too small for two threads to share one operation; each thread gets
a part of its own, which is also computed in the same bits on any number of cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part, Result = TypeVar("Part"), TypeVar("Result")


def side_by_side(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """`function` of each part, in order, without gradients; as many at a time as torch has threads, one thread each. Raises what the
    function raises."""
    threads = torch.get_num_threads()

    def alone(part: Part) -> Result:
        torch.set_num_threads(1)  # of this thread
        with torch.no_grad():
            return function(part)

    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(alone, parts))
    finally:
        torch.set_num_threads(threads)  # of threads that start later
