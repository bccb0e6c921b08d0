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
# A runtime that takes its steps from the largest weights finds those of RTN and AWQ again, and of GPTQ those of groups
# that still reach their end; HQQ's grid lies elsewhere.
_SYMMETRIC = ("rtn", "awq", "gptq")


@dataclass(frozen=True, slots=True)
class Menu:
    """``named`` passes, in any order; ``layers`` of the checkpoint; ``epochs`` that a training may take, 0 where none
    is possible; what a head and a neuron cost in milliseconds (``unit_costs``) where it was measured; the ``grid``
    (bits, group) that the runtime rounds weights to, if it has one."""

    named: Sequence[str]
    layers: int
    epochs: float
    unit_costs: tuple[float, float] | None = None
    grid: tuple[int, int | None] | None = None

    def shapes(self) -> list[Shape]:
        """All of them, without repetitions."""
        found: list[Shape] = []
        for count in depths(self.layers) if self.allows("layers") else [self.layers]:
            for cut in self._cuts(count):
                recoveries = self._recoveries(count, cut=bool(cut))
                found += [(*cut, *r, *numbers) for r in recoveries for numbers in self._numbers(r)]
        return list(dict.fromkeys(shape for shape in found if shape))

    def allows(self, kind: str) -> bool:
        """May this pass be used? Whoever names only how to teach a student means one of fewer layers."""
        students = kind == "layers" and not self._structures() and bool({"distill", "progressive"} & set(self.named))
        return not self.named or kind in self.named or students

    @property
    def trains(self) -> bool:
        """Would there be a training in any of the shapes, given time and rows?"""
        return not self.named or any(PASSES[kind].step == "recovery" for kind in self.named)

    def misfits(self) -> list[str]:
        """Sentences on the named passes that no shape has, with the reason; not on those that would train without time
        or rows to do so."""
        used = {p.kind for shape in self.shapes() for p in shape}
        left = [k for k in self.named if k not in used and (self.epochs or PASSES[k].step != "recovery")]
        return [f"{kind} was not tried: {self._why_not(kind)}" for kind in left]

    def _why_not(self, kind: str) -> str:
        depth = f"a model of {self.layers} layer{'s' * (self.layers != 1)}"
        if kind == "progressive" and not self.allows("layers"):
            return "its students have fewer layers, and layers is not among the techniques that are named"
        if kind == "progressive" and self.layers > 1:
            return f"{depth} leaves no room for an assistant between it and a student"
        if kind == "layers" or (self.allows("layers") and not self._structures()):
            return f"{depth} has none to spare"
        return "it fits no shape that the other techniques make"

    def _structures(self) -> list[str]:
        return [kind for kind in self.named if PASSES[kind].step == "structure"]

    def _cuts(self, count: int) -> list[Shape]:
        """The depth alone, then narrowed; narrowing what is already shallow helps less than it costs."""
        shallow: Shape = () if count == self.layers else (_make("layers", count=count),)
        kinds = [kind for kind in self._structures() if kind != "layers"] if self.named else ["kprune"]
        keeps = (0.6, 0.4) if self.named else (0.6,)
        if 2 * count < self.layers:
            return [shallow]
        return [shallow, *((*shallow, self._narrowing(kind, keep)) for kind in kinds for keep in keeps)]

    def _narrowing(self, kind: str, keep: float) -> Config:
        """Under a budget of milliseconds where the pass takes one and they are known, of MACs otherwise."""
        timed = kind == "fisher" and self.unit_costs is not None
        return _make(kind, keep=keep, **({"unit_costs": self.unit_costs} if timed else {}))

    def _recoveries(self, count: int, *, cut: bool) -> list[Shape]:
        """The ways in which a shape is taught. What was cut stays untaught only where nothing named can teach it, the
        whole model where numbers are named."""
        ways = self._lessons(count, cut=cut) if self.epochs else []
        numbers = any(PASSES[kind].step == "numbers" for kind in self.named)
        untaught = bool(self._structures()) and not ways if cut else numbers
        return [*([()] if untaught else []), *ways]

    def _lessons(self, count: int, *, cut: bool) -> list[Shape]:
        kinds = [k for k, e in PASSES.items() if e.teaches and self.allows(k)] if self.named else ["distill"]
        taught = [(one,) for k in kinds if (cut or PASSES[k].alone) and (one := self._teaching(k, count)) is not None]
        ways: list[Shape] = list(taught)
        if "qat" in self.named:
            ways += [(*way, self.qat()) for way in taught] or [(self.qat(),)]
        return ways

    def qat(self) -> Config:
        """Training on the grid of the runtime that is meant, no longer than the time allows."""
        bits, group = self.grid or (8, None)
        settings = {"bits": bits, "group": group, "activations": "token" if group else "tensor"}
        usual: Any = _make("qat", **settings)
        return _make("qat", **settings, epochs=min(usual.epochs, self.epochs or usual.epochs))

    def _teaching(self, kind: str, count: int) -> Config | None:
        """The pass with its settings; ``None`` where no assistant fits between the two depths."""
        if kind != "progressive":
            return _make(kind, epochs=self.epochs)
        between = round((self.layers + count) / 2)
        fits = count < between < self.layers
        return _make(kind, epochs=self.epochs, assistants=(between,)) if fits else None

    def _numbers(self, recovery: Shape) -> list[Shape]:
        """Every way in which the named passes can join: none of them, those that go with any, and with these one at a
        time of those that decide on the weights. So whoever names one more loses no shape by it."""
        named = [kind for kind in PASSES if kind in self.named and PASSES[kind].step == "numbers"]
        trained = any(p.kind == "qat" for p in recovery)
        deciding = [] if trained else [kind for kind in named if PASSES[kind].slot]
        others = [kind for kind in named if not PASSES[kind].slot and not (trained and kind == "smooth_quant")]
        chosen = [[], others, *([k for k in named if k in others or k == one] for one in deciding)]
        return [tuple(self._number(kind) for kind in kinds) for kinds in chosen]

    def _number(self, kind: str) -> Config:
        """Weights on a symmetric grid take the runtime's, if it has one, and those in groups its groups."""
        bits, group = self.grid or (8, None)
        fits = (kind in _SYMMETRIC and self.grid is not None) or (kind == "zeroquant" and group is not None)
        return _make(kind, bits=bits, group=group) if fits else _make(kind)


def _make(kind: str, **settings: Any) -> Config:
    made: Config = configs([kind])[kind](**settings)
    return made


def depths(layers: int) -> list[int]:
    """Layer counts to try: about half first, then towards both ends; ``layers`` itself is for passes that narrow."""
    shares = (0.5, 0.34, 0.67, 0.17, 0.84, 1.0)
    return list(dict.fromkeys(max(1, round(layers * share)) for share in shares))
