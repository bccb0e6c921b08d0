"""Passes that go layer by layer, on encoder-decoders whose answers are forced: both stacks, each by its own tokens."""

from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from pair_cases import pair_model, pairs_for
from pass_settings import SETTINGS
from torch import Tensor, nn
from unit_cases import said

from hasten.models.reshape import open_model, save_model
from hasten.passes import PASSES, run_pass
from hasten.passes.calibration import padded
from hasten.passes.family import adapter_of
from hasten.passes.gptq import GptqConfig
from hasten.passes.low_rank import LowRankConfig, input_moments
from hasten.passes.matrices import encoder_matrices, written_inputs
from hasten.passes.reconstruction import Walk, in_turn
from hasten.passes.rtn import RtnConfig
from hasten.passes.smooth_quant import SmoothQuantConfig, folds, input_maxima
from hasten.passes.sparsity import second_moments
from hasten.passes.units import real_tokens
from hasten.records import Rejected
from hasten.tasks.generation_wrappers import PairWrapper

KINDS = ("t5", "flan-t5", "bart", "marian", "whisper")
WALKED = ("gptq", "awq", "wanda", "sparsegpt", "zeroquant", "low_rank")
SURE = (*WALKED, "rtn", "hqq", "llm_int8", "gobo", "smooth_quant", "magnitude", "taylor", "mixed_precision", "half",
        "distill", "qat", "lora")  # fmt: skip


def matrices(model: Any) -> dict[str, Tensor]:
    return {n: m.weight.detach().clone() for n, m in model.hf.named_modules() if isinstance(m, nn.Linear)}


@pytest.mark.parametrize("kind", WALKED)
@pytest.mark.parametrize("family", KINDS)
def test_both_stacks_are_treated_and_nothing_is_said_of_one(family: str, kind: str) -> None:
    notes: list[str] = []
    whole = pair_model(family)
    config = LowRankConfig(keep=0.6, which="all") if kind == "low_rank" else SETTINGS[kind][0]
    made = run_pass(copy.deepcopy(whole), config, pairs_for(whole, notes=notes))
    before, after = matrices(whole), matrices(made)
    layers = {m.name for m in encoder_matrices(whole, what="a test")}
    kept = {name for name in layers if name in after and torch.equal(before[name], after[name])}
    assert not kept
    assert any("decoder" in name for name in layers)
    assert not any("alone" in note for note in notes)
    assert torch.isfinite(said(made, pairs_for(whole))).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize("family", ["t5", "bart", "whisper"])
def test_every_pass_takes_pairs_or_says_why_not(family: str, kind: str) -> None:
    model = pair_model(family)
    given = pairs_for(model, original=pair_model(family))
    found: Any = None
    with suppress(Rejected):
        found = run_pass(model, SETTINGS[kind][0], given)
    assert found is None or torch.isfinite(said(found, given)).all()
    assert found is not None or kind not in SURE


@pytest.mark.parametrize("family", KINDS)
def test_a_walk_through_the_decoder_sees_its_own_states(family: str) -> None:
    """Layer by layer, with the encoder's states as they are by then."""
    model = pair_model(family)
    batches = [batch for batch, _ in pairs_for(model, count=7).batches(batch=3)]
    stacks = adapter_of(model, what="a test").stacks(model.hf)
    inputs: dict[int, list[Tensor]] = {}
    layers = [layer for stack in stacks for layer in stack.layers]
    hooks = [
        layer.register_forward_pre_hook(lambda _m, x, i=number: inputs.setdefault(i, []).append(x[0]))  # type: ignore[misc]
        for number, layer in enumerate(layers)
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for hook in hooks:
        hook.remove()
    seen = 0
    for number, layer, walk in in_turn(model, stacks, batches):
        assert walk.written == (number >= len(stacks[0].layers))
        for own, theirs, batch in zip(walk.states, inputs[number], batches, strict=True):
            mine, wanted = (real_tokens(states, batch, written=walk.written) for states in (own, theirs))
            assert torch.allclose(mine, wanted, atol=1e-5)
        assert torch.equal(walk.through(layer, 0), walk.through(layer, 0)), "it may be called again"
        walk.advance(layer)
        seen += 1
    assert seen == len(layers)


def test_a_changed_encoder_is_what_the_decoder_looks_at() -> None:
    model = pair_model("t5")
    batches = [batch for batch, _ in pairs_for(model, count=7).batches(batch=7)]
    stacks = adapter_of(model, what="a test").stacks(model.hf)
    read = []
    for change in (0.0, 0.5):
        for number, layer, walk in in_turn(model, stacks, batches):
            if number == 0:
                with torch.no_grad():
                    layer.get_parameter("layer.0.SelfAttention.v.weight").add_(change)
            if number == len(stacks[0].layers):
                keys = layer.get_submodule("layer.1.EncDecAttention.k")
                read.append(second_moments(walk, layer, [keys])[0])  # type: ignore[list-item]
            walk.advance(layer)
    assert not torch.allclose(read[0], read[1], rtol=1e-2)


@pytest.mark.parametrize("family", KINDS)
def test_inputs_are_those_of_rows_without_padding(family: str) -> None:
    """Sources and answers are padded, and here to one length: shapes cannot tell whose padding it is."""
    model = pair_model(family)
    given = pairs_for(model, count=9)
    one = padded(given.rows)
    if "input_ids" in one:
        wide = max(one["input_ids"].shape[1], one["decoder_input_ids"].shape[1])
        one = {name: nn.functional.pad(array, (0, wide - array.shape[1])) for name, array in one.items()}
    singles = [padded([row]) for row in given.rows]
    own = encoder_matrices(model, what="a test")
    written, adapter = written_inputs(own), adapter_of(model, what="a test")
    decoder = adapter.stacks(model.hf)[1].layers
    number = len(adapter.layers(model.hf)) + 1
    linears = [m.linear for m in own if m.layer == number]
    assert {m.written for m in own if m.layer == number} == {True, False}
    found = []
    for batches in ([one], singles):
        walk = Walk(model, decoder, batches, written=True)
        walk.advance(decoder[0])
        moments = second_moments(walk, decoder[1], linears, written=written)
        elsewhere = [id(linear) not in written for linear in linears]
        means = [mean for mean, _ in input_moments(walk, decoder[1], linears, foreign=elsewhere)]
        found.append([*moments, *means, *input_maxima(model, linears, batches)])
    for together, alone in zip(*found, strict=True):
        assert torch.allclose(together.double(), alone.double(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_columns_answer_for_each_other_in_both_stacks(family: str) -> None:
    whole = pair_model(family)
    given = pairs_for(whole, count=48)
    wanted = said(whole, given)

    def far(config: Any) -> float:
        made = run_pass(copy.deepcopy(whole), config, given)
        return float((said(made, given) - wanted).square().mean())

    assert far(GptqConfig(bits=3, group=32)) < 0.8 * far(RtnConfig(bits=3, group=32))


@pytest.mark.parametrize("family", KINDS)
def test_foldings_of_both_stacks_change_nothing_that_is_said(family: str) -> None:
    whole = pair_model(family)
    given = pairs_for(whole)
    made = copy.deepcopy(whole)
    own = {id(module): name for name, module in made.hf.named_modules()}
    makers = {own[id(pair.maker)] for pair in folds(made)}
    assert any("decoder" in name and name.endswith((".v_proj", "EncDecAttention.v")) for name in makers)
    before = {name: made.hf.get_submodule(name).weight.detach().clone() for name in makers}
    run_pass(made, SmoothQuantConfig(), given)
    assert torch.allclose(said(made, given), said(whole, given), atol=2e-4)
    assert not any(torch.equal(made.hf.get_submodule(name).weight, old) for name, old in before.items())


@pytest.mark.parametrize("family", ["t5", "flan-t5", "bart"])
def test_thin_factors_of_both_stacks_come_back_from_their_folder(family: str, tmp_path: Path) -> None:
    """T5 looks at the type of its FFN's second matrix, which factors have not by themselves."""
    whole = pair_model(family)
    given = pairs_for(whole)
    made = run_pass(whole, LowRankConfig(keep=0.6, which="all"), given)
    save_model(made.hf, tmp_path)
    again = PairWrapper(open_model(type(made.hf), tmp_path, attention="sdpa", dtype=torch.float32)).eval()
    assert torch.allclose(said(again, given), said(made, given), atol=1e-5)
    assert torch.isfinite(said(copy.deepcopy(again), given)).all()
