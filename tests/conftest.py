"""What tests of several folders share."""

import pytest
import torch


@pytest.fixture
def threads():
    """Sets how many threads torch computes with; afterwards it is as many as before."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
