"""Two hosts in network namespaces of the test's own: one is cut off, both stop, and the run goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jointquant.run.journal import partial_folder
from processes import assert_same, environment, launcher, quantized, told, wait_for_steps

ADDRESS = "10.213.77.1"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two namespaces with a cable between them."""
    names = f"jq-{os.getpid()}-a", f"jq-{os.getpid()}-b"
    if shutil.which("ip") is None:
        pytest.skip("no ip command: install iproute2")
    try:
        ip("netns", "add", names[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.213.77.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def start(hosts: tuple[str, str], arguments: list[str | Path]) -> list[subprocess.Popen[str]]:
    """One rank on each host."""
    found = []
    for number, name in enumerate(hosts):
        place = ("--nnodes", "2", "--node-rank", str(number), "--master-addr", ADDRESS, "--master-port", "29400")
        command = ["ip", "netns", "exec", name, *launcher(2, *place), *map(str, arguments)]
        command[command.index("--nproc-per-node") + 1] = "1"
        found.append(
            subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment(GLOO_SOCKET_IFNAME="cable"))
        )
    return found


def test_a_host_that_is_cut_off(hosts: tuple[str, str], model: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "a"
    running = start(hosts, quantized(model, out))
    wait_for_steps(partial_folder(out), 4, *running)
    ip("-n", hosts[1], "link", "set", "cable", "down")
    cut = time.monotonic()
    lines = [told(process.communicate(timeout=100)[1]) for process in running]
    assert time.monotonic() - cut < 60
    assert all(process.returncode != 0 for process in running)
    assert ["no sign of life from rank 1" in line for line in lines[0]] == [True]
    assert ["no sign of life from rank 0" in line for line in lines[1]] == [True]
    assert not out.exists()

    ip("-n", hosts[1], "link", "set", "cable", "up")
    again = start(hosts, quantized(model, out))
    ended = [process.communicate(timeout=200) for process in again]
    assert [process.returncode for process in again] == [0, 0], ended
    assert_same(out, alone)
