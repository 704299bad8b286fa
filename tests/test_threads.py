"""Parts are computed side by side, in the bits of one thread, and leave torch as it was."""

import threading

import pytest
import torch

from ard.threads import side_by_side


@pytest.fixture(autouse=True)
def two_threads(threads):
    threads(2)


def test_results_stand_in_the_order_of_the_parts_and_two_are_computed_at_a_time():
    both = threading.Barrier(2)

    def doubled(part):
        both.wait(timeout=30)  # breaks unless another part is computed meanwhile
        return 2 * part

    assert side_by_side(doubled, [3, 1, 2, 5]) == [6, 2, 4, 10] and side_by_side(doubled, []) == []


def test_each_part_has_one_thread_and_no_gradients_and_the_caller_keeps_its_own():
    weight = torch.ones(2, requires_grad=True)
    found = side_by_side(lambda part: (torch.get_num_threads(), (weight * part).requires_grad), [1, 2, 3])
    assert found == [(1, False)] * 3
    assert torch.get_num_threads() == 2 and torch.is_grad_enabled()
    assert side_by_side(lambda _: side_by_side(lambda _: torch.get_num_threads(), [0]), [0]) == [[1]]
    later = []
    one = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    one.start()
    one.join()
    assert later == [2], "what starts later computes as before"


def test_what_a_part_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda part: 1 / part, [1, 0])
    assert torch.get_num_threads() == 2


def test_two_callers_at_once_leave_torch_as_it_was():
    first, second, counts = threading.Event(), threading.Event(), []

    def waiting(_):
        first.set()
        second.wait(timeout=30)

    def other():
        first.wait(timeout=30)  # a thread that meets torch while another call has set it to one thread
        side_by_side(lambda _: second.set(), [0])
        counts.append(torch.get_num_threads())

    late = threading.Thread(target=other)
    late.start()
    side_by_side(waiting, [0])
    late.join()
    last = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    last.start()
    last.join()
    assert counts == [2, 2] and torch.get_num_threads() == 2
