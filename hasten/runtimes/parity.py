"""Is an export the same function as the model it came from?

Takes outputs of eager and of a session on the same inputs, gives ``None`` or the
reason with numbers. Quality is judged elsewhere: this only catches wrong exports, so
the bounds of low precisions are wide. What stands in the place of padding is nobody's
output, and is not compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.runtimes.runtime import Array, Arrays
from hasten.tasks.task import Task

_MASK = "attention_mask"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest difference as a share of the reference's scale, and smallest cosine of all outputs together."""

    difference: float
    cosine: float


# fp32: reordered sums and fused kernels move logits by 1e-5 or so of their scale. bf16 keeps 8 bits of
# mantissa through six to twenty-four layers. Integers may move single outputs far; all together must still agree.
TOLERANCE = {
    "fp32": Tolerance(difference=2e-3, cosine=0.9999),
    "bf16": Tolerance(difference=0.25, cosine=0.99),
    "int8": Tolerance(difference=float("inf"), cosine=0.85),
    "int5": Tolerance(difference=float("inf"), cosine=0.85),
    "int4": Tolerance(difference=float("inf"), cosine=0.85),
}


def judged_as(runtime: Mapping[str, Any]) -> str:
    """The precision by which outputs of a runtime config (as data) are judged: a cache in int8 rounds as int8 does."""
    precision = str(runtime["precision"])
    return "int8" if runtime.get("kv_cache") and precision in ("fp32", "bf16") else precision


def judged(outputs: Sequence[Array], batches: Sequence[Arrays], *, task: Task) -> list[Array]:
    """What :func:`parity` is to look at, of outputs of a task's model on these batches: of outputs of every token the
    real tokens'. A runtime that computes without padding has nothing to say there, and what others say is never read.
    """
    if task.foretells:
        batches = [{**batch, _MASK: _followed(batch[_MASK])} if _MASK in batch else batch for batch in batches]
    own = map(of_real_tokens, outputs, batches) if task.per_token else outputs
    return [task.comparable(o) for o in own]


def _followed(mask: Array) -> Array:
    """Which tokens have a real one behind them [B, L], padding on the right."""
    return np.concatenate([mask[:, 1:], np.zeros_like(mask[:, :1])], axis=1)


def of_real_tokens(outputs: Array, batch: Arrays) -> Array:
    """[B, L, C] -> [T, C] by the batch's mask; shapes that do not fit it stay as they are, for parity to name."""
    mask = batch.get(_MASK)
    if mask is None or outputs.shape[:2] != mask.shape:
        return outputs
    return np.asarray(outputs[mask.astype(bool)])


def parity(reference: Sequence[Array], got: Sequence[Array], precision: str) -> str | None:
    """``None`` when ``got`` is within the tolerance of ``precision``, else a sentence with the numbers.

    Both are sequences of [B, C], [B, L, C] or, as :func:`judged` gives them, [T, C]; ``precision`` may be finer named
    (``"int8-dynamic"``).
    """
    tolerance = TOLERANCE[precision.split("-")[0]]
    for number, (a, b) in enumerate(zip(reference, got, strict=True)):
        if a.shape != b.shape:
            return f"batch {number}: outputs have shape {b.shape} instead of {a.shape}"
        if not np.isfinite(b).all():
            return f"batch {number}: {int((~np.isfinite(b)).sum())} of {b.size} outputs are not finite"
    x, y = (np.concatenate([one.ravel() for one in side]).astype(np.float64) for side in (reference, got))
    if not x.size:
        return "there is no output to compare, as where every text has one token and none follows"
    scale = float(np.abs(x).max()) or 1.0
    difference = float(np.abs(x - y).max()) / scale
    if difference > tolerance.difference:
        return f"outputs differ from eager by {difference:.2%} of their scale (allowed {tolerance.difference:.2%})"
    cosine = overall_cosine(x, y)
    if cosine < tolerance.cosine:
        return f"cosine with eager is {cosine:.4f} over all outputs (allowed {tolerance.cosine:.4f})"
    return None


def overall_cosine(x: Array, y: Array) -> float:
    """Cosine of all outputs as one long vector each: undecided rows (logits near zero) weigh little."""
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float((x * y).sum()) / norms if norms else float(np.array_equal(x, y))
