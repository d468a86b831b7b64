"""Who of several ranks is gone: a process that waits for one would wait for ever, so each of them watches the others.

Every rank tells torchrun's store every second that it is alive, over a connection of its own, and reads what the
others told. One that is silent for ``SILENCE`` seconds, or ``SHORT_SILENCE`` once something else says that a rank has
gone (a connection broke, torchrun asks to end), is named in one line, and this process ends: collectives that wait
cannot be told to stop. What is on the disk is what a killed run leaves, so the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist
from torch.distributed import DistError

from jointquant.errors import printable

BEAT, LOOK = 1.0, 0.25
"""Seconds between two signs of life, and between two looks at those of others."""

SILENCE, SHORT_SILENCE, START = 20.0, 4.0, 45.0
"""Seconds without a sign of life after which a rank is gone; the same once it is suspected, and for its first one."""

SUSPICION = 10.0
"""Seconds for which a suspicion that nobody's silence confirms is looked into."""

DEFECT, TERMINATED = 1, 143
GO_ON = "run the same command again: it goes on where it was"


class PeerLostError(Exception):
    """An exchange with the other ranks failed; the guard finds out who is gone."""


@dataclass
class Peer:
    """What is known of another rank."""

    rank: int
    words: str  # how it is called in a message
    local: int = -1
    node: str = ""
    sign: int = -1
    heard: float = 0.0
    done: bool = False


class Guard:
    """Watches the other ranks of a run.

    Args:
        address: of torchrun's store.
        port: of it.
        rank: this one.
        size: how many there are.
        local: this rank's number on its host.
    """

    def __init__(self, address: str, port: int, rank: int, size: int, local: int) -> None:
        self.address, self.port, self.rank, self.local = address, port, rank, local
        self.host, self.node = socket.gethostname(), os.environ.get("GROUP_RANK", "0")  # of torchrun: which host
        self.prefix = f"jointquant/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        self.peers = [Peer(other, f"rank {other}", heard=time.monotonic()) for other in range(size) if other != rank]
        self.at_store = time.monotonic()
        self.suspected: tuple[float, str] | None = None
        self.cleanings: list[Callable[[], None]] = []
        self._stopped, self._done, self._failing = threading.Event(), False, False
        self._store: Any = None

    def start(self) -> None:
        """Begin to watch; SIGTERM, by which torchrun ends the others when one has died, goes to the guard."""
        if threading.current_thread() is threading.main_thread():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=self._await_termination, name="guard: signals", daemon=True).start()
        threading.Thread(target=self._beat, name="guard: signs of life", daemon=True).start()
        threading.Thread(target=self._watch, name="guard: watch", daemon=True).start()

    def stop(self) -> None:
        """All ranks are done: none is missed any more."""
        self._done = True
        self._stopped.wait(2 * BEAT)  # the others learn it, too

    def fail(self, message: str | None, status: int) -> NoReturn:
        """This rank failed: end with ``status``; of all ranks that fail, the first says why, on standard error."""
        first, self._failing = True, True
        with contextlib.suppress(DistError, AttributeError):
            store = self._connect()
            first = store.add(f"{self.prefix}/failures", 1) == 1
            store.set(f"{self.prefix}/verdict", str(status))
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                time.sleep(2 * BEAT)  # this process may hold the store: the others read it first
        self._end(message if first else None, status)

    def suspect(self, why: str) -> None:
        """Something says that a rank is gone: shorter silences count."""
        self.suspected = self.suspected or (time.monotonic(), why)

    def lost(self, why: str) -> NoReturn:
        """An exchange failed: wait for the guard to end this process."""
        self.suspect(why)
        while True:
            time.sleep(SILENCE)

    def _connect(self) -> Any:
        return dist.TCPStore(  # type: ignore[attr-defined]
            self.address, self.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=SILENCE / 2)
        )

    def _beat(self) -> None:
        sign = 0
        while not self._stopped.is_set():
            try:
                store = self._store = self._store or self._connect()
                sign += 1
                mine = {
                    "sign": sign,
                    "host": self.host,
                    "node": self.node,
                    "pid": os.getpid(),
                    "local": self.local,
                    "done": self._done,
                }
                store.set(f"{self.prefix}/{self.rank}", json.dumps(mine))
                if self._done:
                    self._stopped.set()
                    return
                self._read(store)
                self.at_store = time.monotonic()
            except DistError:  # silence of the store is what the watch judges
                self._store = None
            time.sleep(BEAT)

    def _read(self, store: Any) -> None:
        if not self._failing and store.check([f"{self.prefix}/verdict"]):
            time.sleep(BEAT / 2)  # the one that failed says why
            self._end(None, int(store.get(f"{self.prefix}/verdict")))
        for peer in self.peers:
            key = f"{self.prefix}/{peer.rank}"
            if not store.check([key]):
                continue
            found = json.loads(store.get(key))
            if found["sign"] != peer.sign:
                peer.sign, peer.heard, peer.done = found["sign"], time.monotonic(), found["done"]
                peer.node, peer.local = found["node"], found["local"]
                peer.words = f"rank {peer.rank} (process {found['pid']} on {found['host']})"

    def _watch(self) -> None:
        while not self._stopped.wait(LOOK):
            now = time.monotonic()
            silence = SILENCE if self.suspected is None else SHORT_SILENCE
            if now - self.at_store > silence:
                where = f"rank 0's host ({self.address}:{self.port})"
                self._missing(where, now - self.at_store, [])
            gone = [p for p in self.peers if not p.done and now - p.heard > (silence if p.sign >= 0 else START)]
            if gone:
                self._missing(", ".join(peer.words for peer in gone), max(now - peer.heard for peer in gone), gone)
            if self.suspected is not None and now - self.suspected[0] > SUSPICION:
                self._unconfirmed(self.suspected[1])

    def _missing(self, who: str, seconds: float, gone: list[Peer]) -> None:
        """Say it once a host: its first rank that is left does."""
        local = [peer for peer in self.peers if peer.node == self.node and peer not in gone]
        speaks = all(peer.local > self.local for peer in local)
        message = f"error: no sign of life from {who} for {seconds:.0f} s: it died or lost the network; {GO_ON}"
        self._end(message if speaks else None, DEFECT)

    def _unconfirmed(self, why: str) -> None:
        if why == "":
            self._end("interrupted" if self.rank == 0 else None, TERMINATED)
        self.fail(f"error: rank {self.rank} on {self.host} lost its connection to another rank ({why}); {GO_ON}", 1)

    def _await_termination(self) -> None:
        signal.sigwait({signal.SIGTERM})
        self.suspect("")

    def _end(self, message: str | None, status: int) -> NoReturn:
        if message is not None:
            print(printable(message), file=sys.stderr)
        for clean in self.cleanings:
            clean()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
