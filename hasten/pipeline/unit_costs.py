"""What one attention head and one FFN neuron cost on a runtime of this host, in milliseconds a request.

Takes a runner and a runtime config, gives the two costs. A share of all heads, then of all neurons, is cut at random;
what that saves, measured on the real export, divided by how many went, is the cost of one. Which ones went changes
nothing. The costs stand in the ledger, so that a resumed run makes the same recipes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from hasten.ledger import Row
from hasten.passes import configs
from hasten.pipeline.trials import TrialRunner
from hasten.records import Config, Recipe, config_to_dict

_ROW = "unit_costs"
# Much and little of them stay: the slope between the two needs no whole model measured in the same way.
_SHARES = (0.75, 0.25)
_MULTIPLE = {"heads": 1, "neurons": 32}


def stored_costs(rows: Sequence[Row], runtime: Config) -> tuple[float, float] | None:
    """(head_ms, neuron_ms) of this runtime as an earlier call measured them."""
    found = _row(rows, runtime)
    return None if found is None or found["head_ms"] is None else (float(found["head_ms"]), float(found["neuron_ms"]))


def _row(rows: Sequence[Row], runtime: Config) -> Row | None:
    """What was written down of this runtime; of one where cutting saves nothing, that."""
    key = _key(runtime)
    return next((r for r in rows if r.get("type") == _ROW and r.get("runtime") == key), None)


def measure_costs(runner: TrialRunner, runtime: Config) -> tuple[float, float] | None:
    """Four rehearsals, a few seconds each; ``None`` (and so MACs for a budget) where cutting saves nothing, or the time
    is up."""
    ledger = runner.space.ledger
    # Nothing can be measured before the original was, in this sitting.
    if _row(ledger.rows.rows, runtime) is None and runner.full is not None:
        head, neuron = _cost(runner, runtime, "heads"), _cost(runner, runtime, "neurons")
        if runner.builds.left_s() <= 0:  # what was cut short says nothing of the runtime
            return None
        costs = (None, None) if head is None or neuron is None else (head, neuron)
        ledger.append({"type": _ROW, "runtime": _key(runtime), "head_ms": costs[0], "neuron_ms": costs[1]})
    return stored_costs(ledger.rows.rows, runtime)


def _cost(runner: TrialRunner, runtime: Config, which: Literal["heads", "neurons"]) -> float | None:
    """Milliseconds that one of them costs; ``None`` when a rehearsal failed or less of them is no faster."""
    layers = runner.facts.layers
    each = (runner.facts.heads if which == "heads" else runner.facts.neurons) // max(1, layers)
    make, multiple = configs(["random_units"])["random_units"], _MULTIPLE[which]
    kept = [max(1, round(share * each / multiple)) * multiple for share in _SHARES]
    found: list[float] = []
    if max(kept) >= each:  # a layer of one or two heads: there is nothing between all and none
        return None
    for count in kept:
        cut = make(keep=count / each, which=which, round_to=multiple)
        if runner.builds.left_s() <= 0:
            return None
        trial = runner.run(Recipe(passes=(cut,), runtime=runtime), "preflight")
        if trial.status != "ok" or trial.figures.latency_ms is None:
            return None
        found.append(trial.figures.latency_ms.p50)
    saved, went = found[0] - found[1], layers * (kept[0] - kept[1])
    return saved / went if saved > 0 and went > 0 else None


def _key(runtime: Config) -> str:
    return json.dumps(config_to_dict(runtime), sort_keys=True)
