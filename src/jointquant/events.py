"""What happens in long work, told to a function: for a program's own log, Weights & Biases, or TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jointquant.distributed.launch import leads
from jointquant.progress import Pace, Progress, Stage, shown

OnEvent = Callable[[dict[str, Any]], None]
"""Is told an event: plain data that JSON can hold.

Every event has ``event``, its kind, and ``stage``, the name of the work. The kinds, and what else they have:

- ``started``: ``total``, the number of the stage's steps.
- ``progress``: ``done`` and ``total`` steps, ``seconds`` since the stage began, ``left``: about how many seconds the
  rest will take, null while nothing tells.
- ``ended``: as ``progress``.
- ``layer``: ``layer``, the number of a layer that is finished, counted from 0; ``seconds`` that it took; in pass 2
  ``losses``, those of each step of learning its rounding, none where that is not learned.
- ``learned``: ``rotation``, the name of its tensor, such as ``r1`` or ``r2.3``; ``losses`` of each step of its
  training; ``angles``, by how many radians each step turned it.
- ``undone``: ``rotation``, such as ``r1`` or ``r4.model.layers.3.mlp.down_proj``, of which ``trainings`` among ``of``,
  one a matrix, ended above their start and were undone: the start was kept; the objective at ``start`` and at the
  ``end``, its mean over these.
"""


class Events:
    """Tells a function what happens, and shows it where another progress does.

    What the function raises ends the work, which goes on from there when it is asked for again.

    Args:
        on_event: is told each event.
        progress: shows the same for people.
    """

    def __init__(self, on_event: OnEvent, progress: Progress) -> None:
        self.on_event, self.progress = on_event, progress

    def tell(self, event: str, **facts: Any) -> None:
        """Something that is no progress."""
        self.on_event({"event": event, **facts})

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Work that is told and shown."""
        self.tell("started", stage=name, total=total)
        with self.progress.stage(name, total) as shown_stage:
            stage = _EventStage(Pace(name, total), shown_stage, self)
            yield stage
        stage.say("ended")


class _EventStage:
    def __init__(self, pace: Pace, beside: Stage, events: Events) -> None:
        self.pace, self.beside, self.events = pace, beside, events

    def advance(self, steps: int = 1) -> None:
        self.pace.advance(steps)
        self.beside.advance(steps)
        self.say("progress")

    def say(self, event: str) -> None:
        pace = self.pace
        facts = {"done": pace.done, "total": pace.total, "seconds": pace.elapsed(), "left": pace.left()}
        self.events.tell(event, stage=pace.name, **facts)


def reported(progress: Progress | None, on_event: OnEvent | None) -> Progress:
    """Of a Python caller: where progress is shown, and told where somebody listens; of several ranks one tells."""
    return shown(progress) if on_event is None or not leads() else Events(on_event, shown(progress))
