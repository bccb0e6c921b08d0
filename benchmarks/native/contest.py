"""Several sessions on the same requests in turns: everyone's times, and how much faster one is than each other one.

Sides live in processes of their own, all on the same cores, and one after the other answers a turn's requests; who
begins moves on with every turn. A round is a set of fresh processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.measure.duel import Round, speedup, turn
from hasten.measure.host import usable_cores
from hasten.measure.statistics import latency
from hasten.measure.worker import Worker
from hasten.records import Config, config_to_dict

OPENER = "hasten.pipeline.jobs:open_artifact"
Requests = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Side:
    """What is opened, and where it lies."""

    name: str
    folder: Path
    config: Config


@dataclass(frozen=True)
class Times:
    """``ms`` of each side: rounds x turns x requests. ``opened`` what opening took."""

    ms: Mapping[str, list[list[tuple[float, ...]]]]
    opened: Mapping[str, dict[str, Any]]

    def of(self, name: str) -> list[float]:
        return [ms for turns in self.ms[name] for turn in turns for ms in turn]

    def p50(self, name: str) -> float:
        return latency(self.of(name)).p50

    def row(self, name: str) -> dict[str, Any]:
        found = latency(self.of(name))
        return {**asdict(found), "p95_over_p50": found.p95 / found.p50, **self.opened[name]}

    def faster(self, name: str, than: str) -> dict[str, float]:
        """p50 of ``than`` over p50 of ``name``, with its interval."""
        pairs = zip(self.ms[than], self.ms[name], strict=True)
        return asdict(speedup([Round(tuple(a), tuple(b)) for a, b in pairs]))


def contest(sides: Sequence[Side], requests: Requests, *, rounds: int, turns: int, per_turn: int) -> Times:
    ms: dict[str, list[list[tuple[float, ...]]]] = {side.name: [] for side in sides}
    opened: dict[str, dict[str, Any]] = {}
    for number in range(rounds):
        with ExitStack() as held:
            workers = [held.enter_context(worker(side, opened)) for side in sides]
            usual = [
                float(np.median(one.time([requests[i % len(requests)] for i in range(2 * per_turn)])))
                for one in workers
            ]
            draw = np.random.default_rng(number)
            found: dict[str, list[tuple[float, ...]]] = {side.name: [] for side in sides}
            for number_of_turn in range(turns):
                chosen = [requests[int(i)] for i in draw.integers(0, len(requests), per_turn)]
                for place in range(len(sides)):
                    at = (number_of_turn + place) % len(sides)
                    spans = tuple(ms for ms, _ in turn(workers[at], chosen, usual_ms=usual[at]))
                    usual[at] = float(np.median(spans))
                    found[sides[at].name].append(spans)
            for name, turns_ms in found.items():
                ms[name].append(turns_ms)
    return Times(ms, opened)


def worker(side: Side, opened: dict[str, dict[str, Any]]) -> Worker:
    """A fresh process with the side's session open, on all cores that this one may use."""
    cores = usable_cores()
    made = Worker.start(cores=cores, threads=len(cores))
    facts = made.open(
        OPENER, folder=side.folder, config=config_to_dict(side.config), threads=len(cores), cores=cores
    )  # fmt: skip
    opened[side.name] = {"load_s": round(facts.load_s, 3), "precision": facts.precision}
    return made


def outputs(side: Side, requests: Requests) -> np.ndarray[Any, Any]:
    """[N, C] of requests of one row each."""
    with worker(side, {}) as made:
        return np.concatenate(made.run(requests))
