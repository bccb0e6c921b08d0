"""What could be deployed: a model, in a precision, on so many of a device. Takes a request and the catalogues."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hasten.plan.sizing.hardware import Device, find_device
from hasten.plan.sizing.memory import Place
from hasten.plan.sizing.shapes import ModelShape, find_model, of_parameters
from hasten.plan.sizing.spec import SizingRequest
from hasten.records import InputError

# How weights get into a precision without losing more than the scores here assume.
_TECHNIQUES: Mapping[str, tuple[str, ...]] = {
    "fp32": (),
    "bf16": (),
    "fp8": ("weights and activations in FP8, scales a channel and a token",),
    "int8": ("W8A8 with SmoothQuant, activations scaled a token",),
    "int4": ("weights in groups by GPTQ or AWQ, activations in 16 bits",),
}


@dataclass(frozen=True, slots=True)
class Option:
    """One replica of it: ``devices`` work on a request together. ``draft`` proposes tokens, where there is one."""

    shape: ModelShape
    device: Device
    precision: str
    devices: int
    draft: ModelShape | None = None

    @property
    def label(self) -> str:
        many = f"{self.devices} x " if self.devices > 1 else ""
        drafted = f" with {self.draft.title} drafting" if self.draft else ""
        return f"{self.shape.title} in {self.numbers}{drafted} on {many}{self.device.name}"

    @property
    def numbers(self) -> str:
        """The precision, as this device has it."""
        return self.device.stored_as(self.precision)

    def place(self, request: SizingRequest) -> Place:
        """Where it lies, with the user's own bound on memory."""
        limits = [b.value for b in request.bounds if b.metric == "memory_bytes"]
        return Place(
            self.shape, self.device, self.precision, self.devices, float(request.cache_bits), self.draft,
            min(limits, default=math.inf),
        )  # fmt: skip

    @property
    def techniques(self) -> tuple[str, ...]:
        """What has to be done to the checkpoint and in the server."""
        found = list(_TECHNIQUES[self.precision])
        if self.shape.kind == "encoder":
            found.append("fewer layers and units, distilled: hasten optimize searches them")
        if self.devices > 1:
            found.append(f"tensor parallel on {self.devices}")
        if self.draft:
            found.append(f"speculation with {self.draft.title}")
        return tuple(found)

    @property
    def features(self) -> tuple[str, ...]:
        """What its architecture brings to memory and speed."""
        shape, found = self.shape, []
        if shape.key_heads < shape.heads:
            how, less = "MQA" if shape.key_heads == 1 else "GQA", shape.heads / shape.key_heads
            found.append(f"{how} ({shape.key_heads} key heads for {shape.heads}: the cache is {less:g}x smaller)")
        if shape.experts:
            share = shape.active_weights / shape.layer_weights
            found.append(f"MoE ({shape.experts_used} of {shape.experts} experts: {share:.0%} of the weights compute)")
        if shape.window:
            found.append(f"windows of {shape.window} tokens")
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Ruling:
    """Why an option is out: ``bound`` is what it breaks, ``miss`` the share by which (0.4: 40 % too slow or large),
    infinite where no number says it; ``check`` counts the kinds of checks that it had passed."""

    option: Option
    bound: str
    reason: str
    miss: float
    remedy: str
    check: int


# The kinds of checks in their order: units and network, scores, memory, one request alone, load, everything.
REACH, SCORE, SIZE, SPEED, LOAD, WHOLE = range(6)


def options_of(
    request: SizingRequest, *, models: Mapping[str, ModelShape], devices: Mapping[str, Device]
) -> list[Option]:
    """All of them, unjudged. Raises InputError for unknown names, for a model that cannot do the task, and when the
    numbers of devices leave none."""
    shapes, places = shapes_of(request, models), devices_of(request, devices)
    draft = _draft(request, models, shapes)
    found = [
        Option(shape, device, precision, count, draft)
        for shape in shapes
        for device in places
        for precision in precisions_of(request, device, shape)
        for count in _counts(request, device, shape)
    ]
    if not found:
        raise InputError(
            f"no option: {request.devices} devices of {', '.join(d.name for d in places) or 'nothing'}",
            expected="hardware, and numbers of devices that divide a model's heads (1 always does)",
            remedy="add 1 to devices, or name hardware",
        )  # fmt: skip
    return found


def shapes_of(request: SizingRequest, models: Mapping[str, ModelShape]) -> list[ModelShape]:
    """The named ones; all of the task's usual kind in the catalogue where none is."""
    named = [*(find_model(name, models) for name in request.models), *map(of_parameters, request.parameters)]
    for shape in named:
        if shape.kind not in request.kinds:
            raise InputError(
                f"{shape.title} is an {shape.kind}", expected=f"for {request.task}: {' or '.join(request.kinds)}",
                remedy="name another model, or another task",
            )  # fmt: skip
    return named or [shape for shape in models.values() if shape.kind == request.kinds[0]]


def devices_of(request: SizingRequest, devices: Mapping[str, Device]) -> list[Device]:
    """The named ones; of the catalogue where none is: what users have on the edge, else what is rented."""
    if request.hardware:
        found = [find_device(name, devices) for name in request.hardware]
        return list({device.name: device for device in found}.values())
    edge = request.setting == "edge" or (request.offline and request.setting == "cloud")
    return [d for d in devices.values() if (d.kind == "edge") == edge]


def precisions_of(request: SizingRequest, device: Device, shape: ModelShape) -> Sequence[str]:
    """Those that were asked; of a device that was measured for such models, those that were."""
    if device.fits and shape.kind == "encoder":
        return [p for p in device.fits if p in request.precisions] or list(device.fits)
    return request.precisions


def _counts(request: SizingRequest, device: Device, shape: ModelShape) -> list[int]:
    """Only GPUs of one machine work on a request together."""
    if device.kind != "gpu":
        return [1] if 1 in request.devices else []
    return [n for n in request.devices if shape.heads % n == 0]


def _draft(request: SizingRequest, models: Mapping[str, ModelShape], shapes: Sequence[ModelShape]) -> ModelShape | None:
    if request.draft is None:
        return None
    draft = find_model(request.draft, models)
    if draft.kind != "decoder" or any(s.kind != "decoder" or draft.total > s.total / 2 for s in shapes):
        raise InputError(
            f"{draft.title} as a draft", expected="a decoder of less than half the size of every model",
            remedy="name a smaller draft, or larger --models",
        )  # fmt: skip
    return draft
