"""The peaks of this host that a program can reach: bandwidth and matrix products. Needs torch."""

from __future__ import annotations

import time
from collections.abc import Callable

_BYTES = 512 * 2**20  # larger than the last cache of any server
_SIDE = 1024
_TRIES = 7


def bandwidth_bytes_s() -> float:
    """Bytes that all cores read a second, from an array larger than the caches; the best of a few tries."""
    import torch

    values = torch.ones(_BYTES // 4)
    return _BYTES / _best_s(lambda: values.sum())


def matmul_ops_s() -> dict[str, float]:
    """Operations a second of square matrix products, a multiply and an add as two; int8 where torch has such."""
    import torch

    ops = 2.0 * _SIDE**3
    a, b = torch.rand(_SIDE, _SIDE), torch.rand(_SIDE, _SIDE)
    found = {"fp32": ops / _best_s(lambda: a @ b)}
    x, y = (m.mul(100).to(torch.int8) for m in (a, b))
    try:
        found["int8"] = ops / _best_s(lambda: torch._int_mm(x, y))
    except (RuntimeError, AttributeError):
        return found
    return found


def _best_s(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)
