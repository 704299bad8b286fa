"""What tests of several folders share."""

from pathlib import Path

import pytest
import torch


@pytest.fixture
def threads():
    """Sets how many threads torch computes with; afterwards it is as many as before."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world():
    """The mini world."""
    from ard.world import World

    return World.load(Path(__file__).parents[1] / "data/world")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A toy dataset of it."""
    from tests.toy_attribution import toy_dataset

    return toy_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """A tiny random generator."""
    from tests.tiny_pipeline import tiny_pipeline

    return tiny_pipeline(tmp_path_factory.mktemp("pipe"))
