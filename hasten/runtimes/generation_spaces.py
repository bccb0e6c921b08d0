"""Which configs of each runtime are worth trying on models that write text.

They differ from those of other models: a decoder waits for its weights, so that fewer bits in the weights alone are
the first thing to try, and activation scales that were calibrated on whole prompts are none. What it has read may be
kept in 8 bits where the runtime can: it saves memory at long contexts, and time where there is much to read again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from hasten.records import Config

_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")


def generation_space(name: str, *, instructions: frozenset[str], threads: int) -> tuple[Config, ...]:
    """Configs of the runtime ``name`` for generation on this host, the most promising first; none of a runtime that
    cannot write text."""
    space = _SPACES.get(name)
    return space(instructions, threads) if space is not None else ()


def _torch(instructions: frozenset[str], threads: int) -> tuple[Config, ...]:
    """The same as of any model, and a cache in 8 bits."""
    room = import_module("hasten.runtimes.torch")
    usual: tuple[Config, ...] = room.space(instructions=instructions, threads=threads)
    quick = sum(not getattr(config, "compile", False) for config in usual)  # what compiles is tried last
    return (*usual[:quick], room.TorchConfig(kv_cache="int8"), *usual[quick:])


def _onnxruntime(instructions: frozenset[str], threads: int) -> tuple[Config, ...]:
    from hasten.runtimes.onnxruntime import OnnxRuntimeConfig

    del threads
    vnni = next((name for name in _VNNI if name in instructions), None)
    narrow = vnni is None and "avx2" in instructions
    return (
        OnnxRuntimeConfig(precision="int4", fusion=False),
        OnnxRuntimeConfig(precision="int8-dynamic", fusion=False, needs=vnni, reduce_range=narrow),
        OnnxRuntimeConfig(fusion=False),
    )


def _openvino(instructions: frozenset[str], threads: int) -> tuple[Config, ...]:
    from hasten.runtimes.openvino import OpenVinoConfig

    del threads
    found = [
        OpenVinoConfig(precision="int8-weights"),
        OpenVinoConfig(precision="int4-weights"),
        OpenVinoConfig(precision="int8-weights", kv_cache="int8"),
        OpenVinoConfig(),
        OpenVinoConfig(precision="int4-weights", kv_cache="int8"),
    ]
    if instructions & {"avx512_bf16", "amx_bf16"}:
        found.append(OpenVinoConfig(precision="bf16"))
    return tuple(found)


def _native(instructions: frozenset[str], threads: int) -> tuple[Config, ...]:
    from hasten.runtimes.native import NativeConfig

    del threads
    found = [
        NativeConfig(precision="int8-dynamic"),
        NativeConfig(precision="int5", fitted=True),
        NativeConfig(precision="int4", fitted=True),
        NativeConfig(precision="int4"),  # what passes and training for it leave
        NativeConfig(precision="int8-dynamic", kv_cache="int8"),
        NativeConfig(),
        NativeConfig(precision="int4", fitted=True, kv_cache="int8"),
    ]
    if instructions & {"avx512_bf16", "amx_bf16"}:
        found.append(NativeConfig(precision="bf16"))
    return tuple(found)


_SPACES: Mapping[str, Callable[[frozenset[str], int], tuple[Config, ...]]] = {
    "torch": _torch,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "native": _native,
}
