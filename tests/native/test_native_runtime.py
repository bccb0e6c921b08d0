"""The runtime around the engine: what a bundle holds, what a damaged one is told, and what a session is safe for."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_cases import INT8, Array, batch_of, exported, opened, wrapped
from hypothesis import given, settings
from hypothesis import strategies as st
from native_here import native_only
from safetensors.numpy import load_file, save_file

from hasten.records import HastenError, InputError, Rejected
from hasten.runtimes import get_runtime
from hasten.runtimes.native import FACTS, MODEL, NativeConfig, space

Tensors = dict[str, Array]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native") / "model"
    exported(wrapped("bert"), folder, INT8, batch_of("bert"))
    return folder


def damaged(bundle: Path, folder: Path, change: Callable[[Tensors], Any]) -> Path:
    tensors = {name: array.copy() for name, array in load_file(bundle / MODEL).items()}
    change(tensors)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / MODEL)
    (folder / FACTS).write_bytes((bundle / FACTS).read_bytes())
    return folder


def said(folder: Path) -> str:
    with pytest.raises(Rejected) as refused:
        opened(folder, INT8)
    return refused.value.reason


# --------------------------------------------------------------------------- what is written


def test_a_bundle_is_plain_tensors_and_what_goes_in(bundle: Path) -> None:
    assert {path.name for path in bundle.iterdir()} == {MODEL, FACTS}
    facts = json.loads((bundle / FACTS).read_text())
    assert facts["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    assert (facts["per_token"], facts["precision"]) == (False, "int8-dynamic")
    assert facts["notes"] == ["matrices of the layers: 24 in int8"]
    kinds = {array.dtype.kind for array in load_file(bundle / MODEL).values()}
    assert kinds == {"i", "f"}


def test_the_same_model_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    exported(wrapped("bert"), tmp_path, INT8, batch_of("bert"))
    for name in (MODEL, FACTS):
        assert (tmp_path / name).read_bytes() == (bundle / name).read_bytes()


def test_precisions_take_the_room_that_they_should(tmp_path: Path) -> None:
    sizes = {}
    for config in (NativeConfig(precision=p) for p in ("fp32", "bf16", "int8-dynamic", "int5", "int4")):  # type: ignore[arg-type]
        exported(wrapped("bert", "mean"), tmp_path / config.precision, config, batch_of("bert"))
        sizes[config.precision] = sum(a.nbytes for a in load_file(tmp_path / config.precision / MODEL).values())
    weights = 4 * (4 * 32 * 32 + 2 * 32 * 64)
    assert sizes["fp32"] - sizes["bf16"] == 2 * weights
    rows = 4 * (5 * 32 + 64)
    assert sizes["fp32"] - sizes["int8-dynamic"] == 3 * weights - 4 * rows
    steps = 2 * weights // 32
    assert sizes["int5"] - sizes["int4"] == weights // 8
    assert sizes["fp32"] - sizes["int4"] == 4 * weights - weights // 2 - steps


def test_inputs_that_it_does_not_know_are_refused(tmp_path: Path) -> None:
    batch = batch_of("bert")
    for other in ({**batch, "pixel_values": batch["input_ids"]}, {"input_ids": batch["input_ids"]}):
        with pytest.raises(Rejected, match="is given input_ids, attention_mask"):
            exported(wrapped("bert"), tmp_path, INT8, other)


def test_bf16_is_offered_where_the_cpu_has_it() -> None:
    with_it = space(instructions=frozenset({"avx512_bf16"}), threads=2)
    without = space(instructions=frozenset({"avx2"}), threads=1)
    assert {c.precision for c in with_it} - {c.precision for c in without} == {"bf16"}  # type: ignore[attr-defined]
    assert with_it[0] == INT8
    assert NativeConfig(precision="int8-dynamic", threads=1) in with_it
    grids = {c.precision: c.grid for c in with_it}  # type: ignore[attr-defined]
    assert grids == {"int8-dynamic": (8, None), "int4": (4, 32), "fp32": None, "bf16": None}


# --------------------------------------------------------------------------- damaged and hostile files


def replaced(name: str, change: Callable[[Array], Array]) -> Callable[[Tensors], None]:
    def apply(tensors: Tensors) -> None:
        tensors[name] = np.ascontiguousarray(change(tensors[name]))

    return apply


def word(place: int, value: int) -> Callable[[Tensors], None]:
    def apply(tensors: Tensors) -> None:
        tensors["words"][place] = value

    return apply


HOSTILE: Mapping[str, Callable[[Tensors], Any]] = {
    "no words": lambda t: t.pop("words"),
    "few words": replaced("words", lambda w: w[:9]),
    "more words": replaced("words", lambda w: np.append(w, 7)),
    "another magic": word(0, 1),
    "another version": word(1, 99),
    "many buffers": word(2, 2**62),
    "many tensors": word(3, 2**62),
    "many operators": word(4, -1),
    "an output that is none": word(5, 10**9),
    "a wide buffer": word(6, 2**60),
    "a tensor less": lambda t: t.pop("data.00000"),
    "a tensor more": lambda t: t.update({"data.99999": np.zeros(3, np.float32)}),
    "a short table": replaced("data.00000", lambda a: a[:-1]),
    "an empty table": replaced("data.00000", lambda a: a[:0]),
}


@native_only
@pytest.mark.parametrize("what", HOSTILE)
def test_what_does_not_hold_together_is_a_sentence(what: str, bundle: Path, tmp_path: Path) -> None:
    reason = said(damaged(bundle, tmp_path / "model", HOSTILE[what]))
    assert MODEL in reason
    assert len(reason.split()) > 8


@native_only
@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=3
    )
)
def test_no_word_is_trusted(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]
) -> None:
    """Whatever stands in the words: it opens and runs, or it is refused; nothing is read that is not there."""

    def change(tensors: Tensors) -> None:
        for place, value in changes:
            tensors["words"][int(place * len(tensors["words"]))] = value

    folder = damaged(bundle, tmp_path_factory.mktemp("words") / "model", change)
    try:
        session = opened(folder, INT8)
        session.run(batch_of("bert"))
        session.close()
    except HastenError as error:
        reason = str(error)
        sentence = len(reason.split()) > 5
        if not sentence:
            raise AssertionError(reason) from error


@native_only
def test_files_that_are_cut_or_missing(bundle: Path, tmp_path: Path) -> None:
    whole = (bundle / MODEL).read_bytes()
    (tmp_path / FACTS).write_bytes((bundle / FACTS).read_bytes())
    for content in (b"", whole[:7], whole[: len(whole) // 2], whole[:-1]):
        (tmp_path / MODEL).write_bytes(content)
        assert MODEL in said(tmp_path)
    (tmp_path / MODEL).unlink()
    assert MODEL in said(tmp_path)


@native_only
@pytest.mark.parametrize(
    "facts",
    [
        "[]", "{}", "not json", '{"format": 2}',
        '{"format": 1, "inputs": "input_ids", "per_token": false, "precision": "fp32"}',
        '{"format": 1, "inputs": ["input_ids"], "per_token": false, "precision": "fp32"}',
        '{"format": 1, "inputs": ["input_ids", "attention_mask"], "per_token": 0, "precision": "fp32"}',
        '{"format": 1, "inputs": ["input_ids", "attention_mask"], "per_token": false, "precision": "int2"}',
        '{"format": 1, "inputs": ["input_ids", "attention_mask"], "per_token": true, "precision": "int8-dynamic"}',
    ],
)  # fmt: skip
def test_facts_that_say_something_else(facts: str, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes((bundle / MODEL).read_bytes())
    (tmp_path / FACTS).write_text(facts)
    assert "cannot open" in said(tmp_path)


# --------------------------------------------------------------------------- sessions


@native_only
def test_ids_outside_the_vocabulary_and_texts_beyond_the_positions_are_refused(bundle: Path) -> None:
    session = opened(bundle, INT8)
    batch = batch_of("bert", (3,))
    for wrong in (66, -1, 2**31 + 4, 2**32 + 4, 2**63 - 1):
        with pytest.raises(InputError):
            session.run({**batch, "input_ids": np.array([[4, wrong, 5]])})
    with pytest.raises(InputError):
        session.run(batch_of("bert", (67,)))
    with pytest.raises(InputError):
        session.run({**batch, "token_type_ids": np.array([[0, 2, 0]])})
    assert np.isfinite(session.run(batch)).all()


@native_only
def test_an_empty_text_is_a_token_of_padding(bundle: Path) -> None:
    session = opened(bundle, INT8)
    batch = batch_of("bert", (4, 4))
    batch["attention_mask"][1] = 0
    found = session.run(batch)
    assert np.isfinite(found).all()
    assert np.array_equal(found[:1], session.run({name: array[:1] for name, array in batch.items()}))


@native_only
def test_several_threads_share_a_session_and_several_sessions_a_process(bundle: Path) -> None:
    sessions = [opened(bundle, INT8, threads=count) for count in (1, 2)]
    batches = [batch_of("bert", (length, 3), seed=length) for length in range(1, 30, 4)]
    wanted = [sessions[0].run(batch) for batch in batches]
    wrong: list[int] = []

    def work(session: Any) -> None:
        for _ in range(30):
            wrong.extend(n for n, b in enumerate(batches) if not np.array_equal(session.run(b), wanted[n]))

    threads = [threading.Thread(target=work, args=(sessions[number % 2],)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@native_only
def test_a_closed_session_says_so(bundle: Path) -> None:
    session = opened(bundle, INT8)
    session.close()
    session.close()
    with pytest.raises(InputError, match="closed"):
        session.run(batch_of("bert"))


@native_only
def test_probe_names_the_kernels() -> None:
    found = get_runtime("native").probe()
    assert found.available
    assert found.facts["kernels"]
