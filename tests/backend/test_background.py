"""Worker threads."""

import threading
from collections.abc import Iterator

import pytest
import torch

from jointquant.backend.background import Background, worker


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def computed_on() -> int:
    torch.ones(1 << 20).to(torch.bfloat16)  # the first operation decides what a thread computes on
    return torch.get_num_threads()


@pytest.mark.usefixtures("three_threads")
def test_a_worker_computes_on_itself_alone_and_all_others_as_before() -> None:
    with worker("alone") as pool:
        assert pool.submit(computed_on).result() == 1
        assert torch.get_num_threads() == 3
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(computed_on()))
        thread.start()
        thread.join()
    assert later == [3]


@pytest.mark.usefixtures("three_threads")
def test_what_works_in_the_background_does() -> None:
    seen: list[int] = []
    with Background("alone") as background:
        background.submit(lambda: seen.append(computed_on()))
    assert seen == [1]
