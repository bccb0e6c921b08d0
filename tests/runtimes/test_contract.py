"""The contract of every runtime: the same function as eager at every length and batch, or a clean refusal."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from native_here import native_only
from tiny_models import TEXTS

from hasten.measure.host import instruction_sets
from hasten.models import adapter_for
from hasten.models.load import load_checkpoint
from hasten.models.surgery import keep_layers
from hasten.native import library, missing
from hasten.records import Config, InputError, MissingDependency, ModelRef, Recipe, Rejected
from hasten.runtimes import RUNTIMES, get_runtime, read_recipe
from hasten.runtimes.parity import parity
from hasten.runtimes.torch import TorchConfig
from hasten.tasks import get_task

VNNI = instruction_sets() & {"avx512_vnni", "avx_vnni", "amx_int8"}
SPACES = {name: list(get_runtime(name).space(instructions=frozenset({"avx2"} | VNNI), threads=2)) for name in RUNTIMES}
CASES = [(name, config) for name, found in SPACES.items() for config in found]
# Tracing and lowering for ExecuTorch takes half a minute a layer where the others take seconds: it gets one layer, and
# several where layers meet (tests/runtimes/test_executorch.py).
SLOW_TO_MAKE = {"executorch"}


def marked(case: Any, name: str) -> Any:
    marks = [pytest.mark.slow] if name in SLOW_TO_MAKE else [native_only] if name == "native" else []
    return pytest.param(case, marks=marks)


QUICK = [marked((n, c), n) for n, c in CASES if not getattr(c, "compile", False)]
NAMES = [marked(name, name) for name in RUNTIMES]


def ids(case: tuple[str, Config]) -> str:
    return f"{case[0]} {case[1].label}"


def feeds(names: tuple[str, ...], shapes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    made = []
    for rows, length in shapes:
        lengths = [length, *rng.integers(1, length + 1, size=rows - 1)]
        mask = np.array([[1] * n + [0] * (length - n) for n in lengths], dtype=np.int64)
        values = {"input_ids": rng.integers(4, 60, size=(rows, length)) * mask, "attention_mask": mask}
        made.append({n: values.get(n, np.zeros_like(mask)) for n in names})
    return made


SHAPES = [(1, 1), (1, 2), (1, 13), (1, 40), (2, 9), (5, 33)]


class Bench:
    """One family's wrapper with its calibration rows and its exports, each made once."""

    def __init__(self, folder: Path, family: str, scratch: Path, *, layers: int) -> None:
        task, adapter = get_task("text-classification"), adapter_for(family)
        assert adapter is not None
        found = load_checkpoint(ModelRef(str(folder)), task=task)
        keep_layers(found.model, adapter, range(layers))
        self.wrapper = task.wrap(found).eval()
        names = (
            ("input_ids", "attention_mask", "token_type_ids")
            if family in ("bert", "electra")
            else ("input_ids", "attention_mask")
        )
        self.calibration = feeds(names, [(1, n) for n in range(3, 30)])
        self.batches = feeds(names, SHAPES)
        self.scratch, self.made = scratch, dict[Any, tuple[Path, Any]]()
        with torch.inference_mode():
            self.expected = [
                self.wrapper(**{k: torch.from_numpy(v) for k, v in b.items()}).numpy() for b in self.batches
            ]

    def export(self, name: str, config: Any) -> tuple[Path, Any]:
        """Threads are for the session alone: files are the same whatever their number."""
        config = replace(config, threads=None)
        if (name, config) not in self.made:
            folder = self.scratch / f"{name}-{len(self.made)}"
            folder.mkdir(parents=True)
            (self.scratch / "cache").mkdir(exist_ok=True)
            exported = get_runtime(name).export(
                self.wrapper, config, calibration=self.calibration, folder=folder, cache=self.scratch / "cache"
            )
            self.made[name, config] = folder, exported
        return self.made[name, config]


@pytest.fixture(scope="session")
def benches(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bench]:
    made: dict[tuple[str, int], Bench] = {}

    def make(family: str, runtime: str = "") -> Bench:
        layers = 1 if runtime in SLOW_TO_MAKE else 4 if family == "bert" else 2
        if (family, layers) not in made:
            scratch = tmp_path_factory.mktemp(f"bench-{family}")
            made[family, layers] = Bench(checkpoint(family), family, scratch, layers=layers)
        return made[family, layers]

    return make


@pytest.mark.parametrize("case", QUICK, ids=ids)
def test_every_config_on_bert(case: tuple[str, Any], benches: Callable[..., Bench]) -> None:
    name, config = case
    bench = benches("bert", name)
    folder, exported = bench.export(name, config)
    assert {p.name for p in folder.iterdir()} == set(exported.files)
    assert not [p for p in folder.rglob("*") if p.suffix in (".pt", ".pth", ".pkl")]
    session = get_runtime(name).open(folder, config, threads=2, cores=(0, 1))
    got = [session.run(batch) for batch in bench.batches]
    assert all(o.dtype == np.float32 for o in got)
    assert parity(bench.expected, got, config.precision) is None
    again = [session.run(batch) for batch in bench.batches]
    assert all(np.array_equal(a, b) for a, b in zip(got, again, strict=True)), "a session must repeat itself"
    assert session.precision.split("-")[0] == config.precision.split("-")[0]
    assert set(exported.input_names) <= set(bench.batches[0])
    session.close()
    assert (np.array([1e-310]) * 1.0)[0] != 0, "a session must leave the caller's floating-point mode alone"


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in TEXTS if family != "bert"])
@pytest.mark.parametrize("name", NAMES)
def test_every_family_in_fp32_and_int8(name: str, family: str, benches: Callable[..., Bench]) -> None:
    bench = benches(family, name)
    known = {c.precision: c for c in reversed(SPACES[name]) if not getattr(c, "compile", False)}
    for config in [known["int4"]] if name in SLOW_TO_MAKE else known.values():
        folder, _ = bench.export(name, config)
        session = get_runtime(name).open(folder, config, threads=1, cores=(0,))
        assert parity(bench.expected, [session.run(b) for b in bench.batches], config.precision) is None


@pytest.mark.slow
def test_compiled_torch(benches: Callable[..., Bench]) -> None:
    config = TorchConfig(compile=True)
    folder, _ = benches("bert").export("torch", config)
    session = get_runtime("torch").open(folder, config, threads=1, cores=(0,))
    assert parity(benches("bert").expected, [session.run(b) for b in benches("bert").batches], "fp32") is None


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_recipe_round_trip(case: tuple[str, Config]) -> None:
    recipe = Recipe(passes=(), runtime=case[1])
    assert read_recipe(recipe.to_dict()) == recipe
    assert read_recipe(recipe.to_dict()).id == recipe.id
    with pytest.raises(InputError, match="colour"):
        read_recipe({"passes": [], "runtime": {**recipe.to_dict()["runtime"], "colour": 1}})
    with pytest.raises(InputError, match="precision"):
        read_recipe({"passes": [], "runtime": {**recipe.to_dict()["runtime"], "precision": "int1"}})


def test_labels_and_ids_tell_configs_apart() -> None:
    for found in SPACES.values():
        assert len({c.label for c in found}) == len(found)
        assert len({Recipe((), c).id for c in found}) == len(found)


def test_attention_fuses_for_bert(benches: Callable[..., Bench]) -> None:
    import onnx

    bench = benches("bert")
    folder, _ = bench.export("onnxruntime", SPACES["onnxruntime"][1])
    kinds = [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]
    assert kinds.count("Attention") == 4
    assert kinds.count("SkipLayerNormalization") == 8


@pytest.mark.parametrize("name", NAMES)
def test_sessions_serve_several_threads(name: str, benches: Callable[..., Bench]) -> None:
    bench, config = benches("bert", name), SPACES[name][0]
    folder, _ = bench.export(name, config)
    session = get_runtime(name).open(folder, config, threads=1, cores=(0,))
    wanted = [session.run(b) for b in bench.batches]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(20):
            wrong.extend(i for i, b in enumerate(bench.batches) if not np.array_equal(session.run(b), wanted[i]))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", marked("native", "native")])
def test_opening_needs_no_torch(name: str, benches: Callable[..., Bench]) -> None:
    config = SPACES[name][0]
    folder, _ = benches("bert").export(name, config)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "for blocked in ('torch', 'transformers', 'onnx', 'nncf', 'scipy'): sys.modules[blocked] = None\n"
        "from hasten.runtimes import get_runtime, configs\n"
        f"config = configs()[{name!r}](precision={config.precision!r})\n"
        f"get_runtime({name!r}).open(Path({str(folder)!r}), config, threads=1, cores=(0,))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [name for name in RUNTIMES if name != "native"])
def test_absence_is_a_finding_with_a_remedy(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = sys.modules[RUNTIMES[name][0]]

    def absent(_: str) -> str:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(module, "version", absent)
    probe = get_runtime(name).probe()
    assert not probe.available
    assert "not installed" in str(probe.reason)
    assert "pip install 'hasten[" in str(probe.remedy)
    if name != "torch":
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingDependency, match="pip install"):
            get_runtime(name).open(tmp_path, SPACES[name][0], threads=1, cores=(0,))


def test_a_native_library_that_was_not_built_is_a_finding_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It comes with hasten itself: what is missing is a compiler."""
    monkeypatch.setenv("HASTEN_NATIVE_LIBRARY", str(tmp_path / "absent.so"))
    for cached in (library, missing):
        cached.cache_clear()
    try:
        probe = get_runtime("native").probe()
        assert not probe.available
        assert "no native library" in str(probe.reason)
        assert "compiler" in str(probe.remedy)
        with pytest.raises(Rejected, match="compiler"):
            get_runtime("native").open(tmp_path, SPACES["native"][0], threads=1, cores=(0,))
    finally:
        for cached in (library, missing):
            cached.cache_clear()


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "executorch", marked("native", "native")])
def test_damaged_files_are_rejected(name: str, tmp_path: Path) -> None:
    for file in ("model.onnx", "model.xml", "model.bin", "model.pte", "model.json", "model.safetensors"):
        (tmp_path / file).write_bytes(b"not a model")
    with pytest.raises(Rejected, match="open"):
        get_runtime(name).open(tmp_path, SPACES[name][0], threads=1, cores=(0,))


def test_a_module_that_cannot_be_exported_is_rejected(benches: Callable[..., Bench], tmp_path: Path) -> None:
    bench = benches("bert")

    class Broken(torch.nn.Module):
        hf, task = bench.wrapper.hf, "text-classification"

        def forward(self, *_: torch.Tensor) -> Any:
            raise RuntimeError("no graph for you")

    for name in ("onnxruntime", "openvino", "executorch"):
        with pytest.raises(Rejected, match="export"):
            get_runtime(name).export(
                Broken(), SPACES[name][1], calibration=bench.calibration, folder=tmp_path, cache=tmp_path
            )


def test_parity_names_what_is_wrong() -> None:
    good = [np.array([[1.0, -1.0], [2.0, 0.5]])]
    assert parity(good, good, "fp32") is None
    assert "shape" in str(parity(good, [good[0][:, :1]], "fp32"))
    assert "not finite" in str(parity(good, [good[0] * np.nan], "fp32"))
    assert "differ from eager by" in str(parity(good, [good[0] + 0.1], "fp32"))
    assert parity(good, [good[0] + 0.1], "bf16") is None
    assert "cosine" in str(parity(good, [-good[0]], "int8-dynamic"))


def test_buckets_hide_their_padding(benches: Callable[..., Bench]) -> None:
    bench = benches("bert")
    config = next(c for c in SPACES["openvino"] if c.precision == "fp32")  # type: ignore[attr-defined]
    folder, _ = bench.export("openvino", config)
    free = replace(config, buckets=())  # type: ignore[type-var]
    sessions = [get_runtime("openvino").open(folder, c, threads=1, cores=(0,)) for c in (config, free)]
    for batch in bench.batches:
        a, b = (s.run(batch) for s in sessions)
        assert np.allclose(a, b, atol=1e-5)
