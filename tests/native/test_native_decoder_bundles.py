"""What a bundle of a decoder holds, which settings it has, what is refused, and what a damaged one is told."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoder_cases import adapter_to, batch_of, exported, reader, session_of, writer
from hypothesis import given, settings
from hypothesis import strategies as st
from native_here import native_only
from safetensors.numpy import load_file, save_file

from hasten.models.precision import keep_fp32
from hasten.models.prefix import attach_prefixes
from hasten.native.program import Embed, Linear, Top
from hasten.native.tensors import Bf16, Floats, Int4, Int5, Int8
from hasten.passes.grid import GridSpec, fitted
from hasten.records import HastenError, Rejected
from hasten.runtimes import get_runtime
from hasten.runtimes.generation import Generation
from hasten.runtimes.generation_facts import FACTS as WRITING
from hasten.runtimes.generation_spaces import generation_space
from hasten.runtimes.native import FACTS, MODEL, NativeConfig
from hasten.runtimes.native_decoders import Written, lowered_reader, lowered_writer
from hasten.runtimes.native_generation import writer_facts

INT8 = NativeConfig(precision="int8-dynamic")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("writer") / "model"
    exported(writer("gemma3_text"), folder, INT8)
    return folder


def made(wrapper: Any, precision: Any = "fp32", **changes: Any) -> Written:
    return lowered_writer(
        wrapper, **{"precision": precision, "group": 32, "embeddings": False, "head": precision, **changes}
    )


# --------------------------------------------------------------------------- what is written


def test_a_bundle_says_how_its_cache_is_made(bundle: Path) -> None:
    assert {path.name for path in bundle.iterdir()} == {MODEL, FACTS, WRITING}
    facts = json.loads((bundle / FACTS).read_text())
    assert facts["layers"] == [[2, 8]] * 3
    assert facts["notes"] == ["matrices of the layers: 21 in int8", "the head over 66 tokens: int8"]
    assert json.loads((bundle / WRITING).read_text())["longest"] == 66


def test_a_tied_head_is_the_table() -> None:
    program = made(writer("gemma3_text")).program
    (embed,), (top,) = ([op for op in program.ops if isinstance(op, kind)] for kind in (Embed, Top))
    assert embed.words == top.weight
    untied = made(writer("llama")).program
    (embed,), (top,) = ([op for op in untied.ops if isinstance(op, kind)] for kind in (Embed, Top))
    assert embed.words != top.weight


@pytest.mark.parametrize(
    ("head", "form"), [("fp32", Floats), ("bf16", Bf16), ("int8", Int8), ("int5", Int5), ("int4", Int4)]
)
def test_the_head_has_a_precision_of_its_own(head: Any, form: type, tmp_path: Path) -> None:
    config = NativeConfig(precision="int4", head=head)
    found = exported(writer("qwen2", tie_word_embeddings=True), tmp_path, config)
    assert f"the head over 66 tokens: {head}" in found.notes
    wanted = "int8-dynamic" if head == "int8" else head
    program = made(writer("qwen2", tie_word_embeddings=True), "int4", head=wanted).program
    (top,) = (op for op in program.ops if isinstance(op, Top))
    assert isinstance(program.tensors[top.weight], form)


def test_gate_and_up_are_one_product() -> None:
    program = made(writer("phi3"), "int8-dynamic").program
    products = [op for op in program.ops if isinstance(op, Linear)]
    assert [op.gated for op in products] == [False, False, True, False] * 3 + [False]
    assert all(isinstance(program.tensors[op.weight], Int8) for op in products)


def test_what_a_pass_names_stays_fp32() -> None:
    wrapper = writer("llama")
    keep_fp32(wrapper.hf, ["model.layers.1.mlp.down_proj", "lm_head"])
    program = made(wrapper, "int8-dynamic").program
    forms = [type(program.tensors[op.weight]) for op in program.ops if isinstance(op, Linear)]
    assert forms == [*[Int8] * 7, Floats, *[Int8] * 4, Floats]


@pytest.mark.parametrize(("bits", "forms"), [(4, "3 in int4, 9 in int8"), (8, "12 in int8")])
def test_integers_that_a_pass_left_stay(bits: int, forms: str) -> None:
    """Of fused matrices too. A row of 32 inputs in groups of 32 has one step, which int8 holds as well."""
    wrapper = writer("gpt2")
    spec = GridSpec(bits, 32 if bits == 4 else None)
    with torch.no_grad():
        for layer in adapter_to(wrapper).layers(wrapper.hf):
            parts, ffn = adapter_to(wrapper).attention(layer), adapter_to(wrapper).ffn(layer)
            for linear in (*parts.inputs, parts.output, ffn.up, ffn.down):
                linear.weight.copy_(fitted(linear.weight, spec).nearest(linear.weight))
    notes = made(wrapper, "int4" if bits == 4 else "int8-dynamic").notes
    assert notes[0] == f"matrices of the layers: {forms}"
    assert notes[1] == "12 of them keep the integers that they came with"


def test_steps_of_int4_may_be_searched_for(tmp_path: Path) -> None:
    wrapper = writer("llama")
    fitted = NativeConfig(precision="int4", fitted=True)
    tensors = made(wrapper, "int4", fitted=True).program.tensors
    assert any(isinstance(t, Int4) and t.offsets is not None for t in tensors)
    assert fitted.grid is None, "nobody trains for steps that are searched for"
    assert session_of(wrapper, tmp_path, fitted).run(batch_of((4,), left=True)).shape == (1, 66)
    with pytest.raises(Rejected, match="int8-dynamic has no steps"):
        exported(wrapper, tmp_path, NativeConfig(precision="int8-dynamic", fitted=True))


def test_the_space_has_distinct_configs() -> None:
    found = generation_space("native", instructions=frozenset({"avx512_bf16"}), threads=2)
    assert len({config.label for config in found}) == len(found) >= 5
    assert {getattr(config, "kv_cache", None) for config in found} == {None, "int8"}


# --------------------------------------------------------------------------- refusals


def test_what_has_no_place_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="a mixture of experts"):
        made(writer("mixtral"))
    strange = writer("llama")
    strange.hf.config.model_type = "olmo"
    with pytest.raises(Rejected, match="runs the decoders gpt2, llama"):
        made(strange)
    with pytest.raises(Rejected, match="activation 'mish'"):
        made(writer("llama", hidden_act="mish"))
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(Rejected, match="dynamic change with the length"):
        made(writer("llama", rope_parameters=dynamic))
    both_ways = writer("gemma3_text")
    both_ways.hf.config.use_bidirectional_attention = True
    with pytest.raises(Rejected, match="behind its own"):
        made(both_ways)
    prefixed = writer("llama")
    layers: Any = adapter_to(prefixed).layers(prefixed.hf)
    attach_prefixes(prefixed.hf, [layer.self_attn for layer in layers], [torch.zeros(2, 2, 3, 8)] * len(layers))
    with pytest.raises(Rejected, match="learnt prefixes"):
        made(prefixed)
    with pytest.raises(Rejected, match="kv_cache int8: a model that writes no text"):
        exported(reader("llama"), tmp_path, NativeConfig(kv_cache="int8"))
    with pytest.raises(Rejected, match="encoder"):
        made(writer_with_an_encoder())
    with pytest.raises(Rejected, match="`head` says its form"):
        made(writer("gemma3_text"), embeddings=True)
    swapped = writer("llama")
    swapped.hf.model.norm = torch.nn.Identity()
    with pytest.raises(Rejected, match="another norm"):
        made(swapped)
    forms: Any = {"precision": "fp32", "group": 32, "embeddings": False, "head": "fp32"}
    with pytest.raises(Rejected, match="this is a qwen3_moe model: a mixture"):
        lowered_reader(reader("qwen3_moe"), **forms)


def writer_with_an_encoder() -> Any:
    wrapper = writer("llama")
    wrapper.encoder = True
    return wrapper


def test_ids_that_no_table_has_are_refused(tmp_path: Path) -> None:
    session = session_of(writer("llama"), tmp_path, NativeConfig())
    arrays = batch_of((4,), left=True)
    for wrong in (66, -1, 2**40):
        with pytest.raises(HastenError, match="token id"):
            session.run({**arrays, "input_ids": arrays["input_ids"] * 0 + wrong})
    assert session.run(arrays).shape == (1, 66)


def test_numbers_that_are_none_are_rejected(tmp_path: Path) -> None:
    wrapper = writer("llama")
    with torch.no_grad():
        wrapper.hf.model.norm.weight.fill_(torch.nan)
    with pytest.raises(Rejected, match="finite"):
        next(
            session_of(wrapper, tmp_path, NativeConfig()).generate(batch_of((4,), left=True), Generation(new_tokens=1))
        )


# --------------------------------------------------------------------------- damaged and hostile files


def said(folder: Path) -> str:
    with pytest.raises(Rejected) as refused:
        get_runtime("native").open(folder, INT8, threads=1, cores=())
    return refused.value.reason


def copied(bundle: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for path in bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


FACTS_OF_OTHERS: dict[str, Any] = {
    "no object": 7, "another format": {"format": 99}, "no layers": {"layers": None}, "text": {"layers": "22"},
    "fewer layers": {"layers": [[2, 8]] * 2}, "narrow layers": {"layers": [[2, 7]] * 3},
    "wide layers": {"layers": [[2**40, 2**40]] * 3}, "layers of text": {"layers": [["2", 8]] * 3},
    "no heads": {"layers": [[0, 8]] * 3}, "another buffer": {"best": 0}, "a buffer that is none": {"best": 10**9},
    "a buffer below 0": {"best": -1}, "no buffer": {"best": None}, "the logits": {"best": 7},
    "a precision of its own": {"precision": "int1"},
}  # fmt: skip


@native_only
@pytest.mark.parametrize("what", FACTS_OF_OTHERS)
def test_facts_that_do_not_fit_are_a_sentence(what: str, bundle: Path, tmp_path: Path) -> None:
    folder, change = copied(bundle, tmp_path / "model"), FACTS_OF_OTHERS[what]
    facts = json.loads((folder / FACTS).read_text())
    (folder / FACTS).write_text(json.dumps({**facts, **change} if isinstance(change, dict) else change))
    assert len(said(folder).split()) > 6


def test_layers_that_no_memory_holds_are_refused_before_a_cache_is_made() -> None:
    """Each of them alone would do."""
    facts = {"format": 1, "precision": "fp32", "best": 1, "layers": [[1024, 1024]] * 4}
    assert len(writer_facts(facts).layers) == 4
    with pytest.raises(ValueError, match="how a cache is made"):
        writer_facts({**facts, "layers": [[1024, 1024]] * 4096})


@native_only
@pytest.mark.parametrize("text", ["", "{", "7", '{"encoder": 3}', "[]", "[" * 10**5])
def test_facts_of_writing_that_do_not_fit_are_a_sentence(text: str, bundle: Path, tmp_path: Path) -> None:
    folder = copied(bundle, tmp_path / "model")
    (folder / WRITING).write_text(text)
    assert len(said(folder).split()) > 6


@native_only
@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 10**6), value=st.one_of(st.integers(-3, 70), st.sampled_from([-(2**63), 2**31, 2**63 - 1])))
def test_any_number_of_the_program_may_be_wrong(
    place: int, value: int, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = copied(bundle, tmp_path_factory.mktemp("damaged"))
    tensors = {name: array.copy() for name, array in load_file(folder / MODEL).items()}
    tensors["words"][place % len(tensors["words"])] = value
    save_file(tensors, folder / MODEL)
    try:
        session = get_runtime("native").open(folder, INT8, threads=1, cores=())
        next(session.generate(batch_of((9, 4), left=True), Generation(new_tokens=1)))
    except HastenError:
        return


@native_only
def test_sessions_serve_several_threads(bundle: Path) -> None:
    session = get_runtime("native").open(bundle, INT8, threads=2, cores=())
    asked = Generation(new_tokens=6, ignore_ends=True)
    batches = [batch_of(lengths, left=True, seed=n) for n, lengths in enumerate(((9, 4), (5,), (1, 2, 30)))]
    wanted = [np.stack(list(session.generate(arrays, asked))) for arrays in batches]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(10):
            got = np.stack(list(session.generate(batches[number], asked)))
            wrong.extend([number] * (not np.array_equal(got, wanted[number])))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    session.close()
    with pytest.raises((HastenError, RuntimeError), match="closed"):
        session.run(batches[0])
