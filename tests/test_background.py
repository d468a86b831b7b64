"""Worker threads, and where states lie that nobody saves."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jointquant.background import Background, worker
from jointquant.stores import SLOTS, SpilledStates


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


@pytest.mark.parametrize("slots", [SLOTS, SLOTS[:1]])
def test_states_in_files_follow_each_other(slots: tuple[str, ...], tmp_path: Path) -> None:
    store = SpilledStates(tmp_path, (5, 3, 4), torch.float32, slots)
    exact = torch.randn(5, 3, 4)
    for start in (0, 2, 4):
        store.write(start, exact[start : start + 2])
    store.turn()
    for _ in range(3):  # each window is read before it is written, as layers do it
        for start in (0, 2, 4):
            store.write(start, store.read(start, start + 2) * 2 + 1)
        store.turn()
        exact = exact * 2 + 1
    assert torch.equal(store.read(0, 5), exact)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(slots)
