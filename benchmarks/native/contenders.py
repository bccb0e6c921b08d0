"""Who races in decoders.py: hasten's forms of a packaged model, and the peers that are installed.

Takes a GGUF file, gives for every side how it is opened in a worker, and what a step of it reads.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hasten.measure.host import available_memory_bytes, usable_cores
from hasten.measure.streams import Lane
from hasten.measure.worker import OpenFacts, Worker
from hasten.pipeline.step_bytes import Kept as Layer
from hasten.pipeline.step_bytes import openvino_bytes
from hasten.pipeline.stream_exports import Exports
from hasten.records import Config, ModelRef
from hasten.runtimes.native import NativeConfig
from hasten.runtimes.torch import TorchConfig

_MEMORY_SHARE = 0.7
OURS: dict[str, Config] = {
    "native int8": NativeConfig(precision="int8-dynamic"),
    "native int8, int5 head": NativeConfig(precision="int8-dynamic", head="int5"),
    "native int8, int4 head": NativeConfig(precision="int8-dynamic", head="int4"),
    "transformers bf16": TorchConfig(precision="bf16"),
}
Open = Callable[[Worker], OpenFacts]


@dataclass(frozen=True)
class Held:
    """``opener`` gives how it is opened for a number of streams; ``reads`` are bytes of weights a step, ``cache`` the
    numbers that keys and values are kept in. ``reason``: why it is not there."""

    name: str
    opener: Callable[[int], Open]
    bytes: int
    reads: int
    cache: str
    reason: str | None = None


class Contenders:
    """All sides of one model, exported into ``scratch``; contexts have room for ``tokens``."""

    def __init__(self, model: str, gguf: Path, *, scratch: Path, genai: Path | None, tokens: int) -> None:
        self._cores, self._tokens = usable_cores(), tokens
        with Exports(ModelRef(str(gguf)), task="text-generation", start=self.start) as exports:
            made = [
                self._ours(name, exports, config, scratch / name.replace(" ", "-"), scratch / "cache")
                for name, config in OURS.items()
            ]
            self._writer = exports.writer
        peers = [self._llama(gguf), *(self._genai(genai, model, bits) for bits in ("int8", "int4"))]
        self.sides: Sequence[Held] = [*made, *peers]
        if self._writer.kept is None:
            raise RuntimeError(f"{gguf} does not say what its layers keep")
        self.kept: tuple[Layer, ...] = self._writer.kept
        self.input_names = self._writer.facts.input_names
        alone = self._writer.processor.encode("").arrays["input_ids"]
        self.begins: int | None = int(alone[0]) if len(alone) else None

    def start(self) -> Worker:
        return Worker.start(cores=self._cores, threads=len(self._cores))

    def ids(self, text: str) -> np.ndarray[Any, Any]:
        return np.array(self._writer.processor.ids(text), dtype=np.int64)

    def fits(self, lanes: Sequence[Lane]) -> bool:
        """May all processes be there at once?"""
        taken = sum(max(memory.peak_rss_bytes for memory in lane.memory.values()) for lane in lanes)
        return taken <= _MEMORY_SHARE * available_memory_bytes()

    def _ours(self, name: str, exports: Exports, config: Config, folder: Path, cache: Path) -> Held:
        side = exports.side(config, folder=folder, cache=cache, threads=len(self._cores), cores=self._cores)
        print(f"made {name}" + (f": refused: {side.reason}" if side.reason else ""), flush=True)

        def opener(_streams: int) -> Open:
            assert side.open is not None
            return side.open

        return Held(name, opener, side.bytes, side.reads or side.bytes, side.cache, side.reason)

    def _llama(self, gguf: Path) -> Held:
        """Built for this CPU where it is there, else the wheel for all; the file's matrices are all read: the table of
        words is the output's too."""
        for name, module in (("llama.cpp", "llama_cpp"), ("llama.cpp (xllamacpp)", "xllamacpp")):
            if importlib.util.find_spec(module) is not None:
                given = partial(self._peer, f"peers:open_{module}", path=gguf)
                return Held(name, given, gguf.stat().st_size, gguf.stat().st_size, "fp16")
        return self._absent("llama.cpp", "pip install llama-cpp-python (or xllamacpp)")

    def _genai(self, genai: Path | None, model: str, bits: str) -> Held:
        name = f"OpenVINO GenAI {bits}"
        if importlib.util.find_spec("openvino_genai") is None:
            return self._absent(name, "pip install openvino-genai")
        folder = None if genai is None else genai / f"{model}-{bits}"
        if folder is None or not (folder / "openvino_model.xml").is_file():
            return self._absent(name, f"no folder {model}-{bits} in --openvino")
        reads = openvino_bytes(folder / "openvino_model.xml")
        given = partial(self._peer, "peers:open_genai", folder=folder)
        return Held(name, given, (folder / "openvino_model.bin").stat().st_size, reads, "int8")

    def _peer(self, opener: str, streams: int, **where: Path) -> Open:
        threads = len(self._cores)
        return lambda worker: worker.open(opener, streams=streams, tokens=self._tokens, threads=threads, **where)

    @staticmethod
    def _absent(name: str, reason: str) -> Held:
        def opener(_streams: int) -> Open:
            raise RuntimeError(f"{name} is not there: {reason}")

        return Held(name, opener, 0, 0, "fp32", reason)
