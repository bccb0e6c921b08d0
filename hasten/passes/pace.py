"""How long a pass will take, how many rows it can afford, and where it is given up.

Takes a wrapper, a config and calibration rows, gives a prediction: rows x forward passes a row x the seconds of one, of
which a few are timed. Solves and decompositions between forward passes are not in it, so a pass is watched, too: past
its deadline no module begins another forward pass. Trainings are no matter of this file: they watch the clock
themselves, and end with the best they have.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from hasten.models import adapter_for
from hasten.passes.calibration import Calibration, length_of, padded
from hasten.passes.units import BATCH, by_length
from hasten.records import Config, Rejected

# With fewer rows than these a pass decides on noise: it is better left out.
FEWEST_ROWS = 64
# Those that count tokens and not rows have seen enough after so many, however few texts these are.
_BY_TOKEN = frozenset({"gptq", "awq", "wanda", "sparsegpt", "smooth_quant", "llm_int8", "low_rank", "slice"})
_ENOUGH_TOKENS, _FEWEST_TEXTS = 16384, 8
# Forward passes for each of ``config.rows``, as measured on encoders of 4 and 6 layers, where a row stands for its
# backward pass and for the products that a solve needs, too.
_FORWARDS: Mapping[str, float] = {
    "fisher": 3.5, "gradient": 3.0, "entropy": 1.5, "narrow": 8.0, "low_rank": 3.0, "taylor": 5.0, "wanda": 3.5,
    "sparsegpt": 3.5, "smooth_quant": 1.5, "zeroquant": 4.0, "awq": 4.0, "gptq": 6.0, "llm_int8": 2.5, "slice": 1.5,
}  # fmt: skip
_TUNED_ROWS, _TUNING = 512, 6.0  # of fisher
_LAYER_ROWS, _PADDED = 256, 1.5  # by which layers are chosen, in the order in which they come
_PARTS = 3  # of a layer, each of which is tried alone and left out in turn
_TIMED_ROWS = (2, BATCH)
_LONGEST_S = 5.0  # that a batch may take to be timed


@dataclass(frozen=True, slots=True)
class Pace:
    """A pass uses ``rows`` of the ``wanted`` ones; with them it takes about ``seconds``, a prediction."""

    rows: int
    wanted: int
    seconds: float


def pace(model: Any, config: Config, calibration: Calibration, *, share_s: float, most_s: float) -> Pace:
    """As many rows as fit ``share_s``, though not fewer than :func:`fewest_rows` (or all) where these fit ``most_s``.

    Takes a forward pass of one row, one of two rows and, where that is quick, one of a batch. Raises Rejected when not
    even the fewest rows fit.
    """
    work = work_of(config, depth=_depth(model))
    wanted = min(len(calibration), max((most for most, _ in work), default=0))
    row_s = forward_s(model, calibration, rows=wanted) if wanted else 0.0

    def cost_s(rows: int) -> float:
        return row_s * sum(min(rows, most) * forwards for most, forwards in work)

    fitting = bisect_right(range(1, wanted + 1), share_s, key=cost_s)
    rows = max(fitting, min(fewest_rows(config, calibration), wanted))
    if cost_s(rows) > max(share_s, most_s):
        raise Rejected(
            "time", f"{config.label}: about {cost_s(rows):.0f} s (predicted) with {rows} rows, and there are "
            f"{max(0.0, most_s):.0f} s; give more --time",
        )  # fmt: skip
    return Pace(rows, wanted, cost_s(rows))


def fewest_rows(config: Config, calibration: Calibration) -> int:
    """Rows that a pass needs: 64, or those that hold 16,384 tokens where it counts tokens, and 8 at least."""
    if config.kind not in _BY_TOKEN:
        return FEWEST_ROWS
    rows = calibration.rows[:FEWEST_ROWS]
    mean = sum(map(length_of, rows)) / max(1, len(rows))
    return min(FEWEST_ROWS, max(_FEWEST_TEXTS, math.ceil(_ENOUGH_TOKENS / max(1.0, mean))))


def work_of(config: Any, *, depth: int) -> Sequence[tuple[int, float]]:
    """(rows at most, forward passes for each of them) of a pass on a model of ``depth`` layers; nothing where no row
    is looked at."""
    if config.kind == "layers":
        chosen = config.keep is None and config.by != "even"
        return [(_LAYER_ROWS, _choices(config, depth))] if chosen else []
    if config.kind == "kprune":
        return [(config.rows, 4.0 * depth + 5.0)]
    if config.kind in ("mixed_precision", "half"):
        return [(config.rows, 2.0 * _PARTS * depth + 2.0)]
    found = [(config.rows, _FORWARDS[config.kind])] if config.kind in _FORWARDS else []
    if config.kind == "fisher" and config.tune:
        found.append((min(config.rows, _TUNED_ROWS), _TUNING))
    return found


def _choices(config: Any, depth: int) -> float:
    """Forward passes of the whole depth that choosing the layers takes: greedily, every model that is one shorter."""
    if config.by == "loss":
        return _PADDED * (1.0 + sum(left * (left - 1) for left in range(config.count + 1, depth + 1)) / max(1, depth))
    return _PADDED


@torch.no_grad()
def forward_s(model: Any, calibration: Calibration, *, rows: int) -> float:
    """Seconds of a forward pass for a row of about the mean length, among others of like length."""
    order = [i for index in by_length(calibration, rows=rows) for i in index]
    lengths = [length_of(calibration.rows[i]) for i in order]
    middle = next(n for n, length in enumerate(lengths) if length >= sum(lengths) / len(lengths))
    model(**padded([calibration.rows[order[middle]]]))  # the first one reads weights from the disk and starts threads
    found = math.inf
    for count in _TIMED_ROWS:
        start = max(0, min(middle - count // 2, len(order) - count))
        chosen = order[start : start + count]
        batch = padded([calibration.rows[i] for i in chosen])
        started = time.monotonic()
        model(**batch)
        spent = time.monotonic() - started
        found = min(found, spent / len(chosen))
        if found * BATCH > _LONGEST_S:
            break
    return found


@contextmanager
def ended_by(deadline: float, *, what: str) -> Iterator[None]:
    """Within, no module of any model begins a forward pass after ``deadline`` (of ``time.monotonic()``).

    Raises Rejected then. Whoever looks at rows runs modules, so one hook on all of them bounds every pass.
    """
    started = time.monotonic()

    def look(_module: nn.Module, _inputs: Any) -> None:
        now = time.monotonic()
        if now >= deadline:
            raise Rejected("time", f"{what}: given up after {now - started:.0f} s, longer than predicted")

    hook = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


def _depth(model: Any) -> int:
    """Layers of the wrapper; 0 for a family without an adapter, which the pass itself refuses."""
    adapter = adapter_for(model.hf.config.model_type)
    return 0 if adapter is None else len(adapter.layers(model.hf))
