"""Generation with ONNX Runtime: the decoder's graph is given its keys and values and gives them back.

Takes opened graphs, gives a session; needs onnxruntime and numpy alone. Between steps keys and values stay the
runtime's own tensors, which are handed over and not copied.

Legend: B rows, L tokens of the prompt, V tokens of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hasten.runtimes.generation import DecodingSession
from hasten.runtimes.generation_facts import GenerationFacts
from hasten.runtimes.runtime import Array, Arrays


def generation_session(decoder: Any, encoder: Any | None, *, facts: GenerationFacts, precision: str) -> DecodingSession:
    """A session around onnxruntime's sessions of the graphs."""
    return DecodingSession(lambda: OnnxDecoder(decoder, encoder), facts=facts, precision=precision)


class OnnxDecoder:
    """One batch: its mask, what its encoder read, and the tensors that the last call gave."""

    def __init__(self, decoder: Any, encoder: Any | None) -> None:
        self._decoder, self._encoder = decoder, encoder
        self._takes = {i.name for i in decoder.get_inputs()}
        # [B, heads, tokens, size], of which the graph has fixed the second and the last
        self._past = {i.name: (i.shape[1], i.shape[3]) for i in decoder.get_inputs() if i.name.startswith("past.")}
        self._outputs = [o.name for o in decoder.get_outputs()]
        self._kept: dict[str, Any] = {}
        self._mask: Array | None = None

    def prefill(self, arrays: Arrays, start: tuple[int, ...]) -> Array:
        rows = len(next(iter(arrays.values())))
        self._kept = {n: _value(np.zeros((rows, h, 0, s), np.float32)) for n, (h, s) in self._past.items()}
        self._mask = arrays.get("attention_mask")
        if self._encoder is None:
            return self._forward(arrays["input_ids"])
        names = [o.name for o in self._encoder.get_outputs()]
        given = {i.name: _value(arrays[i.name]) for i in self._encoder.get_inputs()}
        read = self._encoder.run_with_ort_values(names, given)
        self._kept |= zip(names, read, strict=True)
        return self._forward(np.tile(np.asarray(start, dtype=np.int64), (rows, 1)))

    def step(self, ids: Array) -> Array:
        if self._encoder is None:
            assert self._mask is not None
            self._mask = np.concatenate([self._mask, np.ones((len(ids), 1), np.int64)], axis=1)
        return self._forward(ids[:, None])

    def reset(self) -> None:
        self._kept, self._mask = {}, None

    def _forward(self, ids: Array) -> Array:
        given = {**self._kept, "input_ids": _value(ids)}
        if "attention_mask" in self._takes:
            given["attention_mask"] = _value(self._mask)
        logits, *after = self._decoder.run_with_ort_values(self._outputs, given)
        # "present.3.key" of this call is "past.3.key" of the next.
        self._kept |= {f"past.{n.split('.', 1)[1]}": v for n, v in zip(self._outputs[1:], after, strict=True)}
        return np.asarray(logits.numpy(), dtype=np.float32)


def _value(array: Any) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
