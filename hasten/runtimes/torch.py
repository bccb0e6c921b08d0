"""PyTorch: the baseline, and what PyTorch itself can do about speed.

Takes the task's wrapper, writes a Hugging Face folder of safetensors; opens it again
with transformers. Eager or compiled, two attention paths, fp32 or bf16.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from hasten.models.silence import silence_transformers
from hasten.records import Config, Rejected
from hasten.runtimes.generation_facts import check_cache, facts_of, is_generative, read_facts
from hasten.runtimes.runtime import Array, Arrays, Exported, Probe, Session, is_tokens

_WRAPPER = "wrapper.json"
_WARM_LENGTHS = (8, 24)


@dataclass(frozen=True, slots=True)
class TorchConfig:
    """The defaults are the baseline: the model as ``from_pretrained`` gives it, in fp32. ``kv_cache``: the numbers in
    which a model that writes text keeps what it has read; ``None``, those that it computes with."""

    kind: ClassVar[str] = "torch"
    precision: Literal["fp32", "bf16"] = "fp32"
    attention: Literal["sdpa", "eager"] = "sdpa"
    compile: bool = False
    kv_cache: Literal["int8"] | None = None
    threads: int | None = None

    @property
    def label(self) -> str:
        parts = [self.precision, "compiled" if self.compile else "eager"]
        parts += ["plain attention"] if self.attention == "eager" else []
        parts += [f"{self.kv_cache} cache"] if self.kv_cache else []
        parts += [f"{self.threads} thread{'s' * (self.threads != 1)}"] if self.threads else []
        return " ".join(parts)


def probe() -> Probe:
    """Version, and whether a C++ compiler for ``torch.compile`` is there."""
    try:
        found = version("torch")
    except PackageNotFoundError:
        return Probe(False, reason="torch is not installed", remedy="pip install 'hasten[optimize]'")
    compiler = shutil.which("g++") or shutil.which("clang++")
    return Probe(True, version=found, facts={"compile": compiler or "no C++ compiler found (install g++)"})


def space(*, instructions: frozenset[str], threads: int) -> tuple[Config, ...]:
    """The baseline first, then its tuned forms, then bf16 where the CPU has it."""
    found = [TorchConfig(), TorchConfig(attention="eager")]
    if threads > 1:
        found.append(TorchConfig(threads=1))
    if instructions & {"avx512_bf16", "amx_bf16"}:
        found.append(TorchConfig(precision="bf16"))
    if shutil.which("g++") or shutil.which("clang++"):
        found.append(TorchConfig(compile=True))
    return tuple(found)


def export(wrapper: Any, config: TorchConfig, *, calibration: Sequence[Arrays], folder: Path, cache: Path) -> Exported:
    """Save weights (in the config's precision) and the wrapper's facts."""
    import torch

    from hasten.models.reshape import save_model

    del cache
    generative = bool(getattr(wrapper, "generative", False))
    check_cache(config.kv_cache, generative=generative)
    names = tuple(calibration[0])
    model = wrapper.hf.to(torch.bfloat16) if config.precision == "bf16" else wrapper.hf
    save_model(model, folder)
    facts = {
        "class": type(model).__name__,
        "pooling": getattr(wrapper, "pooling", None),
        "normalize": getattr(wrapper, "normalize", False),
        "task": wrapper.task,
        "input_names": names,
        "shapes": {name: array.shape[1:] for name, array in calibration[0].items() if not is_tokens(array)},
    }
    (folder / _WRAPPER).write_text(json.dumps(facts))
    if generative:
        facts_of(wrapper, calibration[0]).write(folder)
    instructions = ("avx512_bf16",) if config.precision == "bf16" else ()
    files = tuple(p.name for p in sorted(folder.iterdir()))
    return Exported(files=files, input_names=names, instructions=instructions)


def open(folder: Path, config: TorchConfig, *, threads: int, cores: tuple[int, ...]) -> Session:
    """Load the folder again; with ``compile`` the first shapes are compiled here, not in a request."""
    del cores
    import torch

    from hasten.models.classes import transformers_class
    from hasten.models.reshape import open_model
    from hasten.tasks import get_task

    silence_transformers()
    torch.set_num_threads(config.threads or threads)
    facts = json.loads((folder / _WRAPPER).read_text())
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    cls = transformers_class(str(facts["class"]))
    if cls is None:
        raise Rejected("open", f"transformers has no model {facts['class']!r}")
    model = open_model(cls, folder, attention=config.attention, dtype=dtype)
    if is_generative(folder):
        from hasten.runtimes.torch_generation import generation_session

        return generation_session(
            model, read_facts(folder), precision=config.precision, compiled=config.compile, kv_cache=config.kv_cache
        )
    wrapper = get_task(facts["task"]).wrap_model(model, pooling=facts["pooling"], normalize=facts["normalize"])
    if config.compile:
        wrapper = torch.compile(wrapper, dynamic=True)
    session = TorchSession(wrapper, names=tuple(facts["input_names"]), precision=config.precision)
    if config.compile:
        session.warm(facts["shapes"])
    return session


class TorchSession:
    """A module in inference mode."""

    def __init__(self, module: Any, *, names: tuple[str, ...], precision: str) -> None:
        self._module, self.input_names, self.precision = module, names, precision

    def run(self, arrays: Arrays) -> Array:
        import torch

        with torch.inference_mode():
            tensors = {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in self.input_names}
            output: Array = self._module(**tensors).float().numpy()
        return output

    def warm(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Two lengths and two batch sizes: enough for the compiler to make all sizes symbolic. What has no length has
        one of ``shapes`` (without the batch)."""
        try:
            for rows, length in ((1, _WARM_LENGTHS[0]), (1, _WARM_LENGTHS[1]), (2, _WARM_LENGTHS[1])):
                tokens = np.ones((rows, length), dtype=np.int64)
                fixed = {name: np.zeros((rows, *shape), dtype=np.float32) for name, shape in shapes.items()}
                self.run({name: fixed.get(name, tokens) for name in self.input_names})
        except Exception as error:  # the compiler fails in a hundred ways; each is a finding for the ledger
            raise Rejected("compile", f"torch.compile failed: {str(error).strip().splitlines()[0][:200]}") from error

    def close(self) -> None:
        self._module = None
