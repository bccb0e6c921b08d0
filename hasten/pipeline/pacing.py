"""A pass in its share of the time.

Takes a wrapper, the passes of a recipe and which one is next, gives the changed wrapper. Structure and numbers use
fewer calibration rows where all of them would take longer than their share; a training ends early enough for what comes
after it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hasten.records import Config

# In the note of a pass that was cut short this way: the verdict looks for it.
ROWS_CUT = "fewer rows, for lack of time"
# Of the time that the search has left: a handful of shapes are pruned in one run, and have to be trained, too.
_SHARE, _LEAST_SHARE_S = 0.1, 2.0
# A prediction errs; a pass that takes so many times as long is given up, though not within the first seconds.
_LATE, _LEAST_S = 3.0, 10.0


def paced(wrapper: Any, passes: Sequence[Config], number: int, given: Any, *, seconds: float) -> Any:
    """The wrapper after pass ``number``; ``given`` is its Calibration, with the deadline of all passes together, and
    ``seconds`` are what they had when the first one began.

    Raises Rejected when the pass cannot do its work, or not in time.
    """
    from hasten.passes import PASSES, run_pass
    from hasten.passes.calibration import Progress
    from hasten.passes.pace import ended_by, pace

    config, share_s = passes[number], max(_LEAST_SHARE_S, _SHARE * seconds)
    if math.isinf(given.deadline):
        return run_pass(wrapper, config, given)
    if PASSES[config.kind].step == "recovery":
        after = sum(PASSES[p.kind].step != "recovery" for p in passes[number + 1 :])
        return run_pass(wrapper, config, replace(given, deadline=given.deadline - after * share_s))
    left_s = max(_LEAST_S, given.deadline - time.monotonic())
    found = pace(wrapper, config, given, share_s=share_s, most_s=left_s)
    if found.rows < found.wanted:
        of = f"{found.rows} of {found.wanted}, to take about {found.seconds:.0f} s (predicted)"
        given.listen(Progress(f"{config.label}: {ROWS_CUT}: {of}", 1, 1, note=True))
        targets = None if given.targets is None else given.targets[: found.rows]
        given = replace(given, rows=given.rows[: found.rows], targets=targets)
    if PASSES[config.kind].step == "structure":  # others want their turn
        left_s = min(left_s, max(_LEAST_S, _LATE * max(share_s, found.seconds)))
    with ended_by(time.monotonic() + left_s, what=config.label):
        return run_pass(wrapper, config, given)
