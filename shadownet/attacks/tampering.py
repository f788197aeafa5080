"""A14: wrong answers, and how many of them pass.

Each kind of wrong answer is one mode of the accelerator's ``hostile`` backend. What counts is the share that the
enclave takes for right: no error, and a result derived from the wrong answer. With integrity "none" that share is 1 for
everything that is finite; a check is as good as the kind that it lets through most often.

Source: the field's usual list for verified outsourcing; a pair that cancels beats check vectors of +1 and -1 half the
time (Freivalds' check, Slalom's constants). Knowledge: malicious accelerator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

KINDS = {
    "flip": "the highest bit of the mantissa of the largest value",
    "scale": "everything times 1.5",
    "step": "one value off by the smallest step",
    "pair": "two values of a row off by amounts that cancel",
    "zeros": "nothing but zeros",
    "replay": "what this layer answered in an earlier inference",
    "swap": "two channels exchanged",
    "other": "another layer's answer",
}


@dataclass(frozen=True)
class Outcome:
    """One inference with a wrong answer in it: whether a result came back, and whether it is another one."""

    accepted: bool
    changed: bool


@dataclass(frozen=True)
class Tally:
    """One kind of wrong answer: ``accepted`` of ``runs`` passed, ``changed`` of which altered the result."""

    kind: str
    runs: int
    accepted: int
    changed: int

    @property
    def false_accepts(self) -> float:
        return self.accepted / self.runs


def attack(trial: Callable[[str, int], Outcome], calls: Iterable[int], kinds: Iterable[str] = KINDS) -> list[Tally]:
    """``trial(kind, call)`` spoils the answers from the ``call``-th layer call on; see the lab's."""
    calls = list(calls)
    found = []
    for kind in kinds:
        outcomes = [trial(kind, call) for call in calls]
        accepted = sum(outcome.accepted for outcome in outcomes)
        found.append(Tally(kind, len(outcomes), accepted, sum(o.accepted and o.changed for o in outcomes)))
    return found
