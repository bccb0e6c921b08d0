"""Which passes make a smaller shape worth trying: how deep, how wide, and how it recovers.

Takes the techniques that the user named (none: hasten's own choice), the checkpoint's depth and how long may be
trained; gives tuples of pass configs, the middle of the ladder first, where a bisection begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hasten.passes import PASSES, configs
from hasten.records import Config

Shape = tuple[Config, ...]

# They train the shape as it will be, each in its own way; QAT comes on top of them.
TEACHING = ("distill", "progressive", "lora", "qlora", "prefix")
# They change a model that was not cut, too.
_ALONE = ("lora", "qlora", "prefix", "qat")


@dataclass(frozen=True, slots=True)
class Menu:
    """``named`` passes, in any order; ``layers`` of the checkpoint; ``epochs`` that a training may take."""

    named: Sequence[str]
    layers: int
    epochs: int

    def shapes(self) -> list[Shape]:
        """All of them, without repetitions."""
        found: list[Shape] = []
        for count in depths(self.layers) if self.allows("layers") else [self.layers]:
            for cut in self._cuts(count):
                found += [(*cut, *recovery, *self._numbers()) for recovery in self._recoveries(count, cut=bool(cut))]
        return list(dict.fromkeys(shape for shape in found if shape))

    def allows(self, kind: str) -> bool:
        """May this pass be used? Whoever names only how to teach a student means one of fewer layers."""
        students = kind == "layers" and not self._structures() and bool({"distill", "progressive"} & set(self.named))
        return not self.named or kind in self.named or students

    @property
    def trains(self) -> bool:
        """Is there a training in any of the shapes?"""
        return not self.named or any(PASSES[kind].step == "recovery" for kind in self.named)

    def _structures(self) -> list[str]:
        return [kind for kind in self.named if PASSES[kind].step == "structure"]

    def _cuts(self, count: int) -> list[Shape]:
        """The depth alone, then narrowed; narrowing what is already shallow helps less than it costs."""
        shallow: Shape = () if count == self.layers else (_make("layers", count=count),)
        kinds = [kind for kind in self._structures() if kind != "layers"] if self.named else ["kprune"]
        keeps = (0.6, 0.4) if self.named else (0.6,)
        if 2 * count < self.layers:
            return [shallow]
        return [shallow, *((*shallow, _make(kind, keep=keep)) for kind in kinds for keep in keeps)]

    def _recoveries(self, count: int, *, cut: bool) -> list[Shape]:
        """The ways in which a shape is taught; nothing at all where none is named, and where nothing was cut."""
        kinds = [k for k in TEACHING if self.allows(k)] if self.named else ["distill"]
        taught = [(one,) for k in kinds if (cut or k in _ALONE) and (one := self._teaching(k, count)) is not None]
        ways: list[Shape] = list(taught)
        if "qat" in self.named:
            ways = [(*way, _make("qat")) for way in ways] or [(_make("qat"),)]
        if ways:
            return ways
        untaught = cut or bool(self._numbers())
        return [()] if untaught and not (cut and kinds) else []

    def _teaching(self, kind: str, count: int) -> Config | None:
        """The pass with its settings; ``None`` where no assistant fits between the two depths."""
        if kind != "progressive":
            return _make(kind, epochs=self.epochs)
        between = round((self.layers + count) / 2)
        fits = count < between < self.layers
        return _make(kind, epochs=self.epochs, assistants=(between,)) if fits else None

    def _numbers(self) -> Shape:
        return tuple(_make(kind) for kind in PASSES if kind in self.named and PASSES[kind].step == "numbers")


def _make(kind: str, **settings: Any) -> Config:
    made: Config = configs([kind])[kind](**settings)
    return made


def depths(layers: int) -> list[int]:
    """Layer counts to try: about half first, then towards both ends; ``layers`` itself is for passes that narrow."""
    shares = (0.5, 0.34, 0.67, 0.17, 0.84, 1.0)
    return list(dict.fromkeys(max(1, round(layers * share)) for share in shares))
