"""Hardware: what memory, bandwidth, arithmetic, power and money a device is.

Takes the catalogue beside this file and the user's own of the same form; gives :class:`Device`. Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from hasten.plan.sizing.figures import Figure, assumed
from hasten.plan.sizing.fit import LayerFit, MemoryFit
from hasten.plan.sizing.tables import find_entry, read_catalogue, require

FILE = Path(__file__).with_name("hardware.toml")
DeviceKind = Literal["gpu", "cpu", "edge"]
# In which numbers a precision computes, the best one first; weights alone in few bits compute in 16.
_COMPUTES: Mapping[str, tuple[str, ...]] = {
    "fp32": ("fp32",),
    "bf16": ("bf16", "fp16", "fp32"),
    "fp8": ("fp8",),
    "int8": ("int8", "bf16", "fp16", "fp32"),
    "int4": ("bf16", "fp16", "int8", "fp32"),
}
PRECISIONS = tuple(_COMPUTES)
_LEAST, _MOST = 1e3, 1e18
_FORBID: dict[str, str] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class Reach:
    """Shares of the peaks that a good runtime reaches, and what every pass costs besides, in seconds."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID

    compute: Figure
    bandwidth: Figure
    pass_s: Figure
    layer_s: Figure


REACH: Mapping[DeviceKind, Reach] = {
    "gpu": Reach(
        assumed(0.5, "prefill of large models reaches 40 to 60 % of the dense peak"),
        assumed(0.65, "decoding reaches 50 to 80 % of the bandwidth (Databricks 2023; gpt-fast: 72 %)"),
        assumed(1e-3, "scheduling and sampling, a step"),
        assumed(10e-6, "launches and synchronisation in a captured graph, a layer"),
    ),
    "cpu": Reach(
        assumed(0.5, "matrix products of served sizes reach about half of the peak"),
        assumed(0.6, "reads of weights reach 50 to 70 % of the bandwidth"),
        assumed(0.3e-3, "one call of a runtime"),
        assumed(50e-6, "threads meeting between operators, a layer"),
    ),
    "edge": Reach(
        assumed(0.3, "small cores throttle and share their caches"),
        assumed(0.5, "reads of weights reach about half of the bandwidth"),
        assumed(1e-3, "one call of a runtime"),
        assumed(50e-6, "threads meeting between operators, a layer"),
    ),
}
RUNTIME_BYTES: Mapping[DeviceKind, Figure] = {
    "gpu": assumed(1.5e9, "CUDA context, kernels and captured graphs: 1 to 2 GB with today's servers"),
    "cpu": assumed(0.25e9, "a Python process with one runtime: 0.1 to 0.4 GB"),
    "edge": assumed(0.1e9, "an app's runtime without Python"),
}
USABLE_SHARE = assumed(0.9, "a tenth of the memory stays free: fragments, drivers, the unforeseen")


@dataclass(frozen=True, slots=True)
class Device:
    """One device, or one slice of a server. Memory in bytes, bandwidth in bytes/s, ``ops_per_s`` dense with a multiply
    and an add as two, ``link_bytes_s`` to a peer in the same machine, one direction. ``reach`` and ``runtime_bytes``
    stand before what is assumed of its kind; ``fits`` and ``memory_fits`` are what was measured on it, by precision."""

    __pydantic_config__: ClassVar[dict[str, str]] = _FORBID

    name: str
    title: str
    kind: DeviceKind
    memory_bytes: Figure
    bandwidth_bytes_s: Figure
    watts: Figure
    usd_per_h: Figure
    ops_per_s: Mapping[str, Figure]
    link_bytes_s: Figure | None = None
    usable_share: Figure = USABLE_SHARE
    reach: Reach | None = None
    runtime_bytes: Figure | None = None
    aliases: tuple[str, ...] = ()
    fits: Mapping[str, LayerFit] = field(default_factory=dict, hash=False)
    memory_fits: Mapping[str, MemoryFit] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        rates = (self.memory_bytes, self.bandwidth_bytes_s, *self.ops_per_s.values(), self.link_bytes_s)
        inside = all(f is None or _LEAST <= f.value <= _MOST for f in rates)
        require(inside, f"memory, bandwidth, link and operations must be above zero, from {_LEAST:g} to {_MOST:g}")
        require(0 < self.usable_share.value <= 1, "usable_share must be above 0, and at most 1")
        others = (self.watts, self.usd_per_h, self.runtime)
        require(all(0 <= f.value <= _MOST for f in others), "watts, price and runtime_bytes must be zero or more")
        reach = self.reached
        shares = (reach.compute.value, reach.bandwidth.value)
        require(all(0 < share <= 1 for share in shares), "shares of the peaks must be above 0, and at most 1")
        require(all(0 <= f.value <= 60 for f in (reach.pass_s, reach.layer_s)), "pass_s and layer_s: 0 to 60 seconds")
        require("fp32" in self.ops_per_s, "ops_per_s needs fp32: everything can fall back to it")

    def supports(self, precision: str) -> bool:
        """Has it units for ``precision``, or for one that can stand in for it?"""
        return any(kind in self.ops_per_s for kind in _COMPUTES[precision])

    def stored_as(self, precision: str) -> str:
        """What 16 bits are here: bf16, or fp16 on what has no other."""
        return (
            "fp16" if precision == "bf16" and "bf16" not in self.ops_per_s and "fp16" in self.ops_per_s else precision
        )

    @property
    def noun(self) -> str:
        """What one of it is called."""
        return {"gpu": "GPU", "cpu": "machine", "edge": "device"}[self.kind]

    def ops(self, precision: str) -> Figure:
        """Peak operations a second for matrices in ``precision``."""
        return next(self.ops_per_s[kind] for kind in _COMPUTES[precision] if kind in self.ops_per_s)

    @property
    def reached(self) -> Reach:
        """Its own, or what is assumed of its kind."""
        return self.reach or REACH[self.kind]

    @property
    def runtime(self) -> Figure:
        """Bytes that a process takes besides the model."""
        return self.runtime_bytes or RUNTIME_BYTES[self.kind]

    @property
    def usable_bytes(self) -> float:
        return self.memory_bytes.value * self.usable_share.value


def read_devices(own: str | Path | None = None) -> dict[str, Device]:
    """hasten's devices, and the user's over them. Raises InputError that names file, device and key."""
    return read_catalogue(Device, FILE, own)


def find_device(name: str, catalogue: Mapping[str, Device]) -> Device:
    """By its name or alias. Raises InputError with the nearest names."""
    names = {alias: d for d in catalogue.values() for alias in (d.name, *d.aliases)}
    return find_entry(name, names, what="hardware", remedy="describe yours in a file and give --hardware-file")
