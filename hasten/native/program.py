"""The flat program that the native engine runs: plain data, made once from a model, checked again before it is run.

Takes tensors, buffers and operators as frozen records; `serialized.serialize` gives the form that C++ reads and that a
file can hold. Knows neither models nor transformers, and checks nothing: the engine refuses what does not fit together.

A program is a list of buffers (activations, one fp32 row a token or a sequence), a list of tensors (weights) and an
ordered list of operators that name them by number. Sequences are ragged: the rows of a batch lie one after the other
without padding. Buffers may be written again; an operator that works element by element or row by row (Norm, Linear's
residual, Activate, Add, Normalize, Rotary) may write the buffer that it reads, Linear's and Attention's inputs may not
be their outputs.

Legend: T tokens of all sequences, S sequences, N outputs, K inputs, G groups of a row, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from hasten.native.tensors import Tensor

Rows = Literal["token", "sequence"]
Activation = Literal["none", "gelu_erf", "gelu_tanh", "relu", "silu", "tanh"]
NormKind = Literal["layer", "rms", "rms_plus_one"]
PoolKind = Literal["first", "mean", "last", "max"]


@dataclass(frozen=True)
class Buffer:
    """fp32 [T, width] (``rows="token"``) or [S, width] (``"sequence"``). A width of 0 is allowed."""

    width: int
    rows: Rows = "token"


@dataclass(frozen=True)
class Features:
    """output [T, width] = the fp32 rows that the caller gives instead of, or beside, token ids."""

    code: ClassVar[int] = 1
    output: int


@dataclass(frozen=True)
class Embed:
    """output [T, K] = scale words[id] + positions[place + first_position] + types[type], each of the last two optional.

    Tables are tensors [V, K] of any kind; ``place`` counts from 0 in each sequence; types are 0 where the caller gives
    none. An id, a place or a type outside its table is an InputError before anything is computed.
    """

    code: ClassVar[int] = 2
    output: int
    words: int
    positions: int | None = None
    types: int | None = None
    first_position: int = 0
    scale: float = 1.0


@dataclass(frozen=True)
class Norm:
    """output [R, K] = norm(input + residual) weight + bias; ``total`` (a buffer) keeps input + residual.

    ``layer``: (x - mean) / sqrt(variance + eps); ``rms``: x / sqrt(mean of squares + eps); ``rms_plus_one``: the same
    with weight + 1 (Gemma). ``residual``, ``total``: buffers of the same shape or None; weight, bias: Floats [K] or
    None. Post-norm residual: ``Norm(input=linear_output, residual=x, output=x)``.
    """

    code: ClassVar[int] = 3
    input: int
    output: int
    weight: int | None
    bias: int | None
    eps: float
    kind: NormKind = "layer"
    residual: int | None = None
    total: int | None = None


@dataclass(frozen=True)
class Linear:
    """output [R, N] = activation(input [R, K] W^T + bias) + residual.

    ``weight``: a tensor [N, K] of any kind, ``bias``: Floats [N] or None, ``residual``: a buffer [R, N] or None. K may
    be 0 (the output is the bias) and so may N. ``gated``: W is [2 N, K], its first N rows the gate, and
    output = activation(gate) up (+ residual); the bias is [2 N]. ``cap`` > 0: what is activated, x, becomes
    cap tanh(x / cap).
    """

    code: ClassVar[int] = 4
    input: int
    output: int
    weight: int
    bias: int | None = None
    activation: Activation = "none"
    residual: int | None = None
    gated: bool = False
    cap: float = 0.0


@dataclass(frozen=True)
class Attention:
    """output [T, heads D] = softmax(scale q k^T) v within each sequence.

    input [T, (heads + 2 kv_heads) D]: each row is its queries, then keys, then values, head after head. Query head h
    reads key head h // (heads / kv_heads). ``causal``: keys up to its own place; ``window`` > 0: only keys less than
    ``window`` places away. ``cap`` > 0: scores x become cap tanh(x / cap). Scores and sums are fp32. ``bf16``: in
    sequences of 64 keys and more, where the CPU multiplies it, queries, keys, weights (exp of a score less the largest
    one so far) and values are rounded to it first.
    """

    code: ClassVar[int] = 5
    input: int
    output: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    causal: bool = False
    window: int = 0
    cap: float = 0.0
    bf16: bool = False


@dataclass(frozen=True)
class Pool:
    """output [S, K] (``rows="sequence"``) = the first, mean, last or largest of a sequence's rows of input [T, K]."""

    code: ClassVar[int] = 6
    input: int
    output: int
    kind: PoolKind


@dataclass(frozen=True)
class Normalize:
    """output [R, K] = x / max(||x||_2, eps)."""

    code: ClassVar[int] = 7
    input: int
    output: int
    eps: float = 1e-12


@dataclass(frozen=True)
class Activate:
    """output [R, K] = activation(input)."""

    code: ClassVar[int] = 8
    input: int
    output: int
    activation: Activation


@dataclass(frozen=True)
class Add:
    """output [R, K] = input + other; ``other`` is a buffer of the same shape."""

    code: ClassVar[int] = 9
    input: int
    other: int
    output: int


@dataclass(frozen=True)
class Rotary:
    """input [T, >= (heads + kv_heads) D], in place: the first heads + kv_heads heads of each row are turned.

    ``frequencies``: Floats [F] with 2 F <= D; of a head the first 2 F numbers are turned, in halves (a, b):
    a' = a cos - b sin, b' = b cos + a sin (the form of Llama and Gemma). The angle is place frequency, rounded to
    fp32; cosine and sine are multiplied by ``factor``. ``places``: how many there are, at most.
    """

    code: ClassVar[int] = 10
    input: int
    heads: int
    kv_heads: int
    head_dim: int
    frequencies: int
    places: int
    factor: float = 1.0


@dataclass(frozen=True)
class HeadNorm:
    """input [R, >= (first + heads) D], in place: each of ``heads`` heads from the ``first`` on is normed on its own.

    ``weight``: Floats [D]; kinds as in Norm.
    """

    code: ClassVar[int] = 11
    input: int
    first: int
    heads: int
    head_dim: int
    weight: int
    eps: float
    kind: NormKind = "rms"


@dataclass(frozen=True)
class CachedAttention:
    """Causal attention over the caller's cache (`Engine.forward`): input and output as in Attention.

    First the rows' keys and values go to their slots of ``layer``, then each row sees the keys of its sequence up to
    its own position, with ``window`` > 0 only the last ``window`` of them. ``cap`` as in Attention, ``bf16`` too for
    sequences of more than a few rows.
    """

    code: ClassVar[int] = 12
    input: int
    output: int
    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    cap: float = 0.0
    bf16: bool = False


@dataclass(frozen=True)
class Top:
    """output [R, 2 count]: the largest ``count`` of input W^T + bias in falling order, then their numbers.

    Of equal ones the lowest number comes first; NaN is never among them (number -1 where nothing is left). The product
    itself is not kept. ``weight`` [N, K] may be the table of an Embed: its numbers are then held once. Where no
    operator reads the output, it is made only when `Engine.forward` is asked for it, and a Linear whose output nobody
    reads likewise: a program may end in both.
    """

    code: ClassVar[int] = 13
    input: int
    output: int
    weight: int
    bias: int | None = None
    count: int = 1


@dataclass(frozen=True)
class Foretell:
    """output [T, 2] = of the token that follows each the logarithm of its probability, and the likeliest one's number.

    Probabilities are the softmax of input W^T + bias, ``cap`` as in Linear; they are not kept. After the last token of
    a sequence follows its first. Of equally likely ones it is the lowest number.
    """

    code: ClassVar[int] = 14
    input: int
    output: int
    weight: int
    bias: int | None = None
    cap: float = 0.0


Op = (Features | Embed | Norm | Linear | Attention | Pool | Normalize | Activate | Add | Rotary | HeadNorm
      | CachedAttention | Top | Foretell)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Program:
    """``output`` is the number of the buffer whose rows are the answer."""

    buffers: tuple[Buffer, ...]
    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    output: int
