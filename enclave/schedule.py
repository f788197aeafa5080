"""What the executor runs of an entry: its steps, without the segments whose results layers gather themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from enclave.gather import Shape, Window, window
from enclave.program import Entry, Layer, Segment

Step = Segment | Layer


@dataclass(frozen=True)
class Schedule:
    """Steps in order; ``windows`` are what layers gather, by their numbers; ``dead_after`` are the tensors that nobody
    needs after a step."""

    steps: list[Step]
    windows: dict[int, Window]
    dead_after: list[list[int]]

    def reads(self, step: Step) -> list[int]:
        """The tensors that a step needs."""
        if isinstance(step, Segment) or step.number not in self.windows:
            return step.reads()
        return [*self.windows[step.number].gather.sources(), *(t for t in step.reads() if t != step.input)]


def schedule(entry: Entry, known: dict[int, Shape], takes: Callable[[Step], bool]) -> Schedule:
    """Leave out the segments whose results are read by nothing but layers that the C loop ``takes``. ``known`` has the
    shape of every tensor of the entry."""
    outputs = {spec.index for spec in entry.outputs}
    steps: list[Step] = []
    windows: dict[int, Window] = {}
    for step in entry.steps:
        found = _windows(step, entry, known, takes) if isinstance(step, Segment) else {}
        if found and outputs.isdisjoint(step.makes()):
            windows |= found
        else:
            steps.append(step)
    made = Schedule(steps, windows, [[] for _ in steps])
    last = {t: i for i, step in enumerate(steps) for t in (*made.reads(step), *step.makes())}
    for t, i in last.items():
        if t not in outputs and t not in entry.constants:
            made.dead_after[i].append(t)
    return made


def _windows(
    segment: Segment, entry: Entry, known: dict[int, Shape], takes: Callable[[Step], bool]
) -> dict[int, Window]:
    """What each reader of a segment gathers, by its number; {} if one of them cannot."""
    found: dict[int, Window] = {}
    for step in entry.steps:
        reads = Counter(t for t in step.reads() if t in segment.makes())
        if not reads:
            continue
        if not isinstance(step, Layer) or reads != {step.input: 1} or not takes(step):
            return {}
        if step.input not in segment.gathers:
            return {}
        own, order = window(segment.gathers[step.input], known, known[step.input]), step.restore.order
        if own is None or (order is not None and len(order) != own.gather.channels):
            return {}
        found[step.number] = own
    return found
