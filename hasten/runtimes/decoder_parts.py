"""The graphs that a generative model is exported as, with inputs to trace them with. Needs torch.

Takes the task's wrapper and a batch, gives one part (``model``: a decoder) or two (``encoder``, ``model``). Exporters
for different runtimes differ in what they do with a part, not in what it is.

Legend: B rows, T new tokens, P tokens of the past, S tokens or states of the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hasten.records import Rejected
from hasten.runtimes.decoder_graph import (
    LOGITS,
    CrossDecoderGraph,
    DecoderGraph,
    EncoderGraph,
    Slot,
    cross_slots,
    decoder_slots,
)
from hasten.runtimes.runtime import Arrays

DECODER, ENCODER = "model", "encoder"
# Sizes that stand for nothing special when traced.
_B, _T, _P, _S = 2, 3, 4, 5
# Rotary angles that change once a text grows long: a trace keeps those of its example.
_CHANGING = {"dynamic", "longrope"}


@dataclass(frozen=True, slots=True)
class Part:
    """A module, its example inputs in order, its outputs, and the axes that have names instead of sizes."""

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    axes: Mapping[str, Mapping[int, str]]


def parts_of(wrapper: Any, example: Arrays) -> tuple[Part, ...]:
    """What to export. Raises Rejected for a model whose trace would be another function."""
    changing = sorted(_rope_types(wrapper.hf.config) & _CHANGING)
    if changing:
        raise Rejected("export", f"rotary positions of type {changing[0]} change with the length, a graph's do not")
    return _encoder_and_decoder(wrapper.hf, example) if wrapper.encoder else (_decoder(wrapper.hf),)


def present(name: str) -> str:
    """The output that becomes the input ``name`` of the next call."""
    return name.replace("past.", "present.", 1)


def _decoder(hf: Any) -> Part:
    slots = decoder_slots(hf)
    mask = torch.ones(_B, _P + _T, dtype=torch.long)
    mask[1, :2] = 0
    past = _tensors("past", slots, _P)
    return Part(
        DECODER,
        DecoderGraph(hf),
        {"input_ids": torch.ones(_B, _T, dtype=torch.long), "attention_mask": mask, **past},
        (LOGITS, *map(present, past)),
        {
            "input_ids": {0: "batch", 1: "tokens"},
            "attention_mask": {0: "batch", 1: "total"},
            **_axes(past, "past"),
            **_axes(map(present, past), "total"),
            LOGITS: {0: "batch"},
        },
    )


def _encoder_and_decoder(hf: Any, example: Arrays) -> tuple[Part, Part]:
    masked = "input_ids" in example
    source, named_axes = _source(example)
    own, cross, width = cross_slots(hf, next(iter(source.values())))
    read = _tensors("cross", cross, _S)
    encoder = Part(
        ENCODER, EncoderGraph(hf), source, tuple(read), {**named_axes, **_axes(read, "source")}
    )  # fmt: skip
    past = _tensors("past", own, _P)
    mask = {"attention_mask": source["attention_mask"]} if masked else {}
    decoder = Part(
        DECODER,
        CrossDecoderGraph(hf, masked=masked, width=width),
        {"input_ids": torch.ones(_B, _T, dtype=torch.long), **mask, **past, **read},
        (LOGITS, *map(present, past)),
        {
            **{name: axes for name, axes in named_axes.items() if name in mask},
            "input_ids": {0: "batch", 1: "tokens"},
            **_axes(past, "past"),
            **_axes(map(present, past), "total"),
            **_axes(read, "source"),
            LOGITS: {0: "batch"},
        },
    )
    return encoder, decoder


def _source(example: Arrays) -> tuple[dict[str, Tensor], dict[str, Mapping[int, str]]]:
    """Two rows for the encoder, one of them padded; sound has one length."""
    if "input_ids" not in example:
        sound = torch.from_numpy(example["input_features"][:1]).float().repeat(_B, 1, 1)
        return {"input_features": sound}, {"input_features": {0: "batch"}}
    mask = torch.ones(_B, _S, dtype=torch.long)
    mask[1, -2:] = 0
    axes: Mapping[int, str] = {0: "batch", 1: "source"}
    ids = torch.ones(_B, _S, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": mask}, {"input_ids": axes, "attention_mask": axes}


def _tensors(kind: str, slots: Sequence[Slot], length: int) -> dict[str, Tensor]:
    seeded = torch.Generator().manual_seed(0)
    return {f"{kind}.{s.name}": torch.randn(_B, s.heads, length, s.size, generator=seeded) for s in slots}


def _axes(names: Any, length: str) -> dict[str, Mapping[int, str]]:
    return {name: {0: "batch", 2: length} for name in names}


def _rope_types(config: Any) -> set[str]:
    """The kinds of rotary positions, which some families have one of for every kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    found = [rope, *(value for value in rope.values() if isinstance(value, Mapping))]
    return {str(one["rope_type"]) for one in found if "rope_type" in one}
