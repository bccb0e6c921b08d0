"""Generation with OpenVINO: a request holds the keys and values of one batch.

Takes compiled models, gives a session; needs openvino and numpy alone.

Legend: B rows, V tokens of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hasten.records import Rejected
from hasten.runtimes.generation import DecodingSession
from hasten.runtimes.generation_facts import GenerationFacts
from hasten.runtimes.runtime import Array, Arrays

_FUSED = "ScaledDotProductAttention"


def generation_session(decoder: Any, encoder: Any | None, *, facts: GenerationFacts, precision: str) -> DecodingSession:
    """A session around the compiled models."""
    return DecodingSession(lambda: OpenVinoDecoder(decoder, encoder), facts=facts, precision=precision)


def check_rounded(decoder: Any) -> None:
    """Raise Rejected unless every state goes into a fused attention: OpenVINO rounds it there alone, and says nothing
    of the others."""
    ops = decoder.get_runtime_model().get_ops()  # all are held, or states would lose their readers
    states = [op for op in ops if _kind(op) == "MemoryInput"]
    whole = sum(
        not any(_kind(reader.get_node()) == _FUSED for port in op.outputs() for reader in port.get_target_inputs())
        for op in states
    )
    if whole or not states:
        raise Rejected(
            "open", f"kv_cache int8: {whole} of {len(states)} states are not inside of a fused attention, and OpenVINO "
            "would keep them whole",
        )  # fmt: skip


def _kind(op: Any) -> str:
    """What the CPU's plugin runs for it."""
    return str(op.get_rt_info()["layerType"].astype(str))


class OpenVinoDecoder:
    """One batch: a request with its state, and the arrays that it is given again at each step."""

    def __init__(self, decoder: Any, encoder: Any | None) -> None:
        self._request = decoder.create_infer_request()
        self._reader = encoder.create_infer_request() if encoder is not None else None
        self._takes = {i.get_any_name() for i in decoder.inputs}
        self._given: dict[str, Any] = {}

    def prefill(self, arrays: Arrays, start: tuple[int, ...]) -> Array:
        rows = len(next(iter(arrays.values())))
        self._given = {"beam_idx": np.arange(rows, dtype=np.int32)}
        if "attention_mask" in self._takes:
            self._given["attention_mask"] = arrays["attention_mask"]
        if self._reader is None:
            return self._forward(arrays["input_ids"])
        self._reader.infer({n: np.ascontiguousarray(a) for n, a in arrays.items()}, share_inputs=True)
        for port in self._reader.model_outputs:
            self._request.set_tensor(port.get_any_name(), self._reader.get_tensor(port))
        return self._forward(np.tile(np.asarray(start, dtype=np.int64), (rows, 1)))

    def step(self, ids: Array) -> Array:
        if self._reader is None:
            more = np.ones((len(ids), 1), dtype=np.int64)
            self._given["attention_mask"] = np.concatenate([self._given["attention_mask"], more], axis=1)
        return self._forward(ids[:, None])

    def reset(self) -> None:
        self._request.reset_state()
        self._given = {}

    def _forward(self, ids: Array) -> Array:
        given = {name: np.ascontiguousarray(array) for name, array in {**self._given, "input_ids": ids}.items()}
        self._request.infer(given, share_inputs=True)
        return np.array(self._request.get_tensor("logits").data, dtype=np.float32)
