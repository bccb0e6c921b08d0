"""The contract of generation: through its cache, every runtime says what the eager model says without one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generation_cases import opened, prompts, uncached, wrapped
from native_here import native_only

from hasten.records import InputError, Rejected
from hasten.runtimes import get_runtime
from hasten.runtimes.generation import DecodingSession, Generation, generated
from hasten.runtimes.generation_facts import GenerationFacts
from hasten.runtimes.generation_spaces import generation_space
from hasten.runtimes.native import NativeConfig
from hasten.runtimes.onnx_decoder_graph import _kept_in
from hasten.runtimes.onnxruntime import OnnxRuntimeConfig
from hasten.runtimes.openvino import OpenVinoConfig
from hasten.runtimes.parity import parity
from hasten.runtimes.runtime import Array, Arrays
from hasten.runtimes.sampling import Sampler
from hasten.runtimes.torch import TorchConfig
from hasten.runtimes.torch_generation import forced_logits

PLAIN = (TorchConfig(), OnnxRuntimeConfig(fusion=False), OpenVinoConfig())
NATIVE = NativeConfig()
QUICK = ("gpt2", "gemma3_text", "t5")
SLOW = (
    "llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "mixtral", "qwen2_moe", "qwen3_moe",
    "bart", "marian", "flan-t5", "whisper",
)  # fmt: skip
OTHER = (
    TorchConfig(attention="eager"),
    OnnxRuntimeConfig(precision="int8-dynamic", fusion=False),
    OnnxRuntimeConfig(precision="int4", fusion=False),
    OpenVinoConfig(precision="int8-weights"),
    OpenVinoConfig(precision="int4-weights", group=32),
)
CASES = [
    *(pytest.param(family, config, id=f"{family} {config.kind}") for family in QUICK for config in PLAIN),
    *(
        pytest.param(family, config, id=f"{family} {config.kind}", marks=pytest.mark.slow)
        for family in SLOW
        for config in PLAIN
    ),
]
CASES += [pytest.param(family, NATIVE, id=f"{family} native", marks=native_only) for family in ("gpt2", "gemma3_text")]
WRITERS = [*PLAIN, pytest.param(NATIVE, marks=native_only)]
IDS = np.random.default_rng(1).integers(6, 60, size=(2, 6))


class Bench:
    """Wrappers and sessions that several tests look at, made once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._made = folder, dict[Any, Any]()

    def wrapper(self, family: str) -> Any:
        if family not in self._made:
            self._made[family] = wrapped(family)
        return self._made[family]

    def session(self, family: str, config: Any) -> Any:
        if (family, config) not in self._made:
            self._made[family, config] = self.opened(family, config, self._folder / f"{family}-{len(self._made)}")
        return self._made[family, config]

    def opened(self, family: str, config: Any, folder: Path) -> Any:
        """Exported into ``folder``; what configs share is made once."""
        example = prompts(family, lengths=(6,))
        return opened(self.wrapper(family), config, folder, example=example, cache=self._folder / family)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("generation"))


@pytest.mark.parametrize(("family", "config"), CASES)
def test_cached_steps_are_the_uncached_model(family: str, config: Any, bench: Bench) -> None:
    session = bench.session(family, config)
    for lengths in ((7,), (9, 4), (1,)):
        arrays, ids = prompts(family, lengths=lengths), IDS[: len(lengths)]
        wanted = uncached(bench.wrapper(family), arrays, ids)
        got = session.forced(arrays, ids)
        assert got.dtype == np.float32
        assert parity(list(wanted), list(got), "fp32") is None
        assert parity(list(wanted[:, 0]), list(session.run(arrays)), "fp32") is None
    assert session.precision == "fp32"


@pytest.mark.parametrize("family", [*QUICK, "whisper"])
def test_one_pass_over_prompt_and_ids_is_every_row_by_itself(family: str, bench: Bench) -> None:
    arrays = prompts(family, lengths=(9, 4))
    wanted = uncached(bench.wrapper(family), arrays, IDS)
    found = forced_logits(bench.wrapper(family), arrays, IDS)
    assert found.shape == wanted.shape == (2, 7, found.shape[-1])
    assert parity(list(wanted), list(found), "fp32") is None


@pytest.mark.parametrize("config", [OTHER[0], *(pytest.param(c, marks=pytest.mark.slow) for c in OTHER[1:])])
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_other_configs(family: str, config: Any, bench: Bench) -> None:
    arrays = prompts(family, lengths=(9, 4))
    session = bench.session(family, config)
    wanted = uncached(bench.wrapper(family), arrays, IDS)
    assert parity(list(wanted), list(session.forced(arrays, IDS)), config.precision) is None
    assert session.precision == config.precision


@pytest.mark.parametrize("family", ["gemma3_text", "whisper"])
def test_bf16(family: str, tmp_path: Path) -> None:
    wrapper, arrays = wrapped(family), prompts(family, lengths=(9, 4))
    wanted = uncached(wrapper, arrays, IDS)
    session = opened(wrapper, TorchConfig(precision="bf16"), tmp_path / "model", example=arrays)
    got = session.forced(arrays, IDS)
    assert got.dtype == np.float32
    assert parity(list(wanted), list(got), "bf16") is None


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++") and not shutil.which("clang++"), reason="no C++ compiler")
def test_compiled(bench: Bench) -> None:
    arrays, session = prompts("llama", lengths=(9, 4)), bench.session("llama", TorchConfig(compile=True))
    wanted = uncached(bench.wrapper("llama"), arrays, IDS)
    assert parity(list(wanted), list(session.forced(arrays, IDS)), "fp32") is None
    with pytest.raises(Rejected, match="compile"):
        bench.session("t5", TorchConfig(compile=True))


@pytest.mark.parametrize("family", ["gpt2", "t5"])
@pytest.mark.parametrize("config", PLAIN, ids=lambda c: c.kind)
def test_greedy_text_is_the_uncached_models(family: str, config: Any, bench: Bench) -> None:
    arrays, wanted = prompts(family, lengths=(9, 4)), np.empty((2, 0), dtype=np.int64)
    for _ in range(8):
        likeliest = uncached(bench.wrapper(family), arrays, wanted)[:, -1].argmax(axis=-1)
        wanted = np.concatenate([wanted, likeliest[:, None]], axis=1)
    asked = Generation(new_tokens=8, ignore_ends=True)
    got = np.stack(list(bench.session(family, config).generate(arrays, asked)), axis=1)
    assert got.dtype == np.int64
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize("config", WRITERS, ids=lambda c: c.kind)
def test_iterators_do_not_mix(config: Any, bench: Bench) -> None:
    session, asked = bench.session("gpt2", config), Generation(new_tokens=6, ignore_ends=True)
    first, second = (prompts("gpt2", lengths=lengths, seed=n) for n, lengths in enumerate(((8, 3), (5,))))
    alone = [np.stack(list(session.generate(arrays, asked))) for arrays in (first, second)]
    both = [session.generate(arrays, asked) for arrays in (first, second)]
    together = [np.stack(column) for column in zip(*zip(*both, strict=True), strict=True)]
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    begun = session.generate(first, asked)
    next(begun)
    begun.close()
    assert np.array_equal(np.stack(list(session.generate(second, asked))), alone[1])


@pytest.mark.parametrize(
    ("family", "config"),
    [
        *((family, config) for family in ("gpt2", "t5") for config in PLAIN[1:]),
        pytest.param("gpt2", NATIVE, marks=native_only),
    ],
    ids=lambda x: getattr(x, "kind", x),
)
def test_writing_needs_no_torch(family: str, config: Any, bench: Bench, tmp_path: Path) -> None:
    arrays = prompts(family, lengths=(5,))
    bench.opened(family, config, tmp_path / "model")
    np.savez(tmp_path / "arrays.npz", **arrays)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "for blocked in ('torch', 'transformers', 'onnx', 'nncf', 'scipy'): sys.modules[blocked] = None\n"
        "import numpy as np\nfrom hasten.runtimes import get_runtime, configs\n"
        "from hasten.runtimes.generation import Generation\n"
        f"config = configs()[{config.kind!r}](precision='fp32')\n"
        f"folder = Path({str(tmp_path / 'model')!r})\n"
        f"session = get_runtime({config.kind!r}).open(folder, config, threads=1, cores=(0,))\n"
        f"arrays = dict(np.load({str(tmp_path / 'arrays.npz')!r}))\n"
        "print(len(list(session.generate(arrays, Generation(new_tokens=3, ignore_ends=True)))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "3", done.stderr


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (OnnxRuntimeConfig(), "fusion=False"),
        (OnnxRuntimeConfig(precision="int8-static", fusion=False), "int8-dynamic"),
        (OpenVinoConfig(precision="int8"), "int8-weights"),
    ],
    ids=lambda x: getattr(x, "label", None),
)
def test_configs_that_mean_nothing_here_are_rejected(config: Any, reason: str, bench: Bench, tmp_path: Path) -> None:
    example = [prompts("gpt2", lengths=(5,))]
    with pytest.raises(Rejected, match=reason):
        get_runtime(config.kind).export(
            bench.wrapper("gpt2"), config, calibration=example, folder=tmp_path, cache=tmp_path
        )


def test_positions_that_change_with_the_length_are_not_exported(tmp_path: Path) -> None:
    wrapper = wrapped("llama")
    wrapper.hf.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    for config in PLAIN[1:]:
        with pytest.raises(Rejected, match="dynamic"):
            get_runtime(config.kind).export(
                wrapper, config, calibration=[prompts("llama", lengths=(5,))], folder=tmp_path, cache=tmp_path
            )


def test_rows_that_do_not_fit_are_refused(bench: Bench) -> None:
    session, asked = bench.session("gpt2", TorchConfig()), Generation(new_tokens=3)
    arrays = prompts("gpt2", lengths=(9, 4))
    with pytest.raises(InputError, match="left"):
        session.generate({name: array[:, ::-1] for name, array in arrays.items()}, asked)
    with pytest.raises(InputError, match="at most 66"):
        session.generate(arrays, replace(asked, new_tokens=60))
    assert len(list(session.generate(arrays, replace(asked, new_tokens=58, ignore_ends=True)))) == 58
    with pytest.raises(InputError, match="attention_mask"):
        session.run({"input_ids": arrays["input_ids"]})


def test_a_start_of_ones_own(bench: Bench) -> None:
    session, arrays = bench.session("t5", TorchConfig()), prompts("t5", lengths=(6, 3))
    assert session.facts.start == (1,)
    longer = Generation(new_tokens=1, start=(1, 9, 7))
    ids = np.tile([9, 7], (2, 1))
    wanted = uncached(bench.wrapper("t5"), arrays, ids)[:, -1].argmax(axis=-1)
    assert np.array_equal(next(session.generate(arrays, longer)), wanted)


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino", "native"])
def test_spaces_hold_distinct_configs(name: str) -> None:
    found = generation_space(name, instructions=frozenset({"avx2", "avx512_bf16"}), threads=2)
    assert len({config.label for config in found}) == len(found) >= 3
    assert generation_space("nothing", instructions=frozenset(), threads=1) == ()


class Said:
    """A decoder that says what it was told to, one row of logits after the other."""

    def __init__(self, logits: Array) -> None:
        self._logits, self.given = logits, list[list[int]]()

    def prefill(self, arrays: Arrays, start: tuple[int, ...]) -> Array:
        del arrays, start
        return np.asarray(self._logits[0])

    def step(self, ids: Array) -> Array:
        self.given.append(ids.tolist())
        return np.asarray(self._logits[len(self.given)])

    def reset(self) -> None:
        self.given = []


def said(*ids: list[int], vocabulary: int = 10) -> Said:
    return Said(np.eye(vocabulary, dtype=np.float32)[np.array(ids)])


def test_rows_end_by_themselves() -> None:
    told = said([3, 4], [5, 7], [8, 2], [8, 6], [1, 1])
    rows = [ids.tolist() for ids in generated(told, {}, Generation(new_tokens=9, ends=(5, 6)))]
    assert rows == [[3, 4], [5, 7], [5, 2], [5, 6]], "an ended row says its end again, and all ended is the end"
    assert told.given == [[3, 4], [5, 7], [5, 2]], "no step is taken that nobody asked for"


def test_ends_can_be_ignored() -> None:
    asked = Generation(new_tokens=4, ends=(5,), ignore_ends=True)
    assert [ids.tolist() for ids in generated(said([3], [5], [8], [9]), {}, asked)] == [[3], [5], [8], [9]]


def test_a_step_is_taken_only_when_asked_for() -> None:
    told = said([3], [4], [5])
    writing = generated(told, {}, Generation(new_tokens=2))
    assert next(writing).tolist() == [3]
    assert told.given == []
    next(writing)[:] = 99
    assert told.given == [[3]]
    assert list(writing) == []


def sampler(**changes: Any) -> Sampler:
    return Sampler(**{"rows": 2, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0, **changes})


def drawn(choose: Callable[[Array], Array], logits: Array, times: int = 400) -> Array:
    return np.stack([choose(logits) for _ in range(times)])


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]] * 2, dtype=np.float32))
    shares = np.bincount(drawn(sampler(), logits, 3000).ravel(), minlength=4) / 6000
    assert np.abs(shares - [0.5, 0.3, 0.15, 0.05]).max() < 0.03
    halves = np.bincount(drawn(sampler(temperature=0.5), logits, 3000).ravel(), minlength=4) / 6000
    sharper = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    assert np.abs(halves - sharper / sharper.sum()).max() < 0.03
    assert set(drawn(sampler(top_k=2), logits).ravel()) == {0, 1}
    assert set(drawn(sampler(top_p=0.9), logits).ravel()) == {0, 1, 2}
    assert set(drawn(sampler(top_p=0.8), logits).ravel()) == {0, 1}
    assert set(drawn(sampler(top_p=0.01), logits).ravel()) == {0}


def test_draws_depend_on_the_seed_and_the_row_alone() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    three = drawn(sampler(rows=3), logits, 20)
    assert np.array_equal(drawn(sampler(rows=1), logits[:1], 20)[:, 0], three[:, 0])
    assert not np.array_equal(drawn(sampler(rows=3, seed=1), logits, 20), three)
    assert not np.array_equal(drawn(sampler(rows=3), logits[[0, 0, 0]], 20)[:, 0], three[:, 1])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_rejected(temperature: float) -> None:
    with pytest.raises(Rejected, match="finite"):
        sampler(rows=1, temperature=temperature)(np.array([[1.0, np.nan, 2.0]], dtype=np.float32))


@pytest.mark.parametrize(
    "wrong",
    [{"new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"ends": (-1,)}, {"seed": -1}],
    ids=str,
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Generation(**{"new_tokens": 4, **wrong})


def test_decoders_are_used_again_and_always_reset() -> None:
    made: list[Said] = []

    def make() -> Said:
        made.append(said([3], [5], [8]))
        return made[-1]

    facts = GenerationFacts(encoder=True, input_names=(), start=(1,))
    session = DecodingSession(make, facts=facts, precision="fp32")
    for _ in range(3):  # facts without names: nothing is asked of the arrays
        assert len(list(session.generate({}, Generation(new_tokens=3)))) == 3
    assert len(made) == 1
    assert made[0].given == []
    open_ones = [session.generate({}, Generation(new_tokens=3)) for _ in range(2)]
    assert [next(one).tolist() for one in open_ones] == [[3], [3]]
    assert len(made) == 2
    for one in open_ones:
        one.close()
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run({"input_ids": np.zeros((1, 2), dtype=np.int64)})


def test_graphs_are_not_read_for_names_that_nobody_keeps(tmp_path: Path) -> None:
    assert _kept_in((), [tmp_path / "model.onnx", tmp_path / "encoder.onnx"]) == [[], []]
