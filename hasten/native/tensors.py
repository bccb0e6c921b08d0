"""The weights of a flat program: plain arrays, and what their numbers mean.

Takes and gives numpy arrays as frozen records; knows neither operators nor models. Packing for a CPU is C++'s.

Legend: N outputs, K inputs, G groups of a row, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Floats:
    """fp32 [N, K] (a matrix or a table) or [N] (a bias, a norm's weight)."""

    code: ClassVar[int] = 1
    values: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Bf16:
    """bfloat16 bits as uint16 [N, K]: the upper half of an fp32."""

    code: ClassVar[int] = 2
    values: NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Int8:
    """w[n, k] = codes[n, k] scales[n]: codes int8 [N, K], scales fp32 [N].

    A product with it rounds its input to 8 bits without sign, one scale and zero point a row (token):
    ``low = min(0, min x), range = max(0, max x) - low, scale = range / 255, inverse = 255 / range,
    zero = rint(-low inverse), q = clip(rint(x inverse) + zero, 0, 255)``,
    all in fp32, rounding to even. A range below 1e-30 counts as zeros; a row with NaN, infinity or a range beyond
    fp32 gives NaN. ``y[t, n] = float(sum_k q codes - zero sum_k codes) * (scale[t] * scales[n]) + bias[n]``: the sums
    are exact integers, the same on every instruction set.
    """

    code: ClassVar[int] = 3
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Int4:
    """w[n, k] = (c[n, k] - z[n, g]) scales[n, g], or c[n, k] scales[n, g] + offsets[n, g], with 4-bit codes c, two to a
    byte, and g = k // group.

    codes uint8 [N, ceil(K / 2)], the even column in the lower half; scales fp16 [N, G]; zeros uint8 [N, G] of 0..15,
    or None for 8 everywhere; offsets fp16 [N, G], or None; not both; G = ceil(K / group), group a multiple of 16
    (usually 32, 64, 128).

    A product with it rounds its input to 8 bits with sign, one scale a group of a row: ``scale = max |x| / 127, q =
    rint(x (127 / max |x|))``; sums within a group are exact integers, groups are added in fp32 in their order. A group
    whose largest number is below 1e-30 is all zeros; one with NaN or infinity makes the row's outputs NaN.
    """

    code: ClassVar[int] = 4
    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8] | None
    columns: int
    group: int
    offsets: NDArray[np.float16] | None = None


@dataclass(frozen=True, eq=False)
class Int5:
    """As `Int4` with codes of 5 bits, 16 for zero where there are no offsets, and groups of a multiple of 32 inputs.

    codes uint8 [N, ceil(K / 2)]: the lower four bits, as in `Int4`; fifths uint8 [N, ceil(K / 8)]: column k's fifth
    bit is bit k % 8 of byte k // 8.
    """

    code: ClassVar[int] = 5
    codes: NDArray[np.uint8]
    fifths: NDArray[np.uint8]
    scales: NDArray[np.float16]
    columns: int
    group: int
    offsets: NDArray[np.float16] | None = None


Tensor = Floats | Bf16 | Int8 | Int4 | Int5
