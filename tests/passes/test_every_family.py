"""Every pass on families that are built otherwise: it does its work, or says in a sentence why it cannot."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pass_settings import SETTINGS
from tiny_models import BANDS, FRAMES, SEQ2SEQ, SIZES, language_model, shaken, whisper
from torch import nn
from unit_cases import decoder, said

from hasten.passes import PASSES, run_pass
from hasten.passes.calibration import Calibration
from hasten.passes.distillation import DistillConfig
from hasten.passes.family import adapter_of
from hasten.passes.gptq import GptqConfig
from hasten.passes.group_quant import ZeroQuantConfig
from hasten.passes.layers import LayersConfig
from hasten.passes.llm_int8 import LlmInt8Config
from hasten.passes.lora import LoraConfig
from hasten.passes.low_rank import LowRankConfig
from hasten.passes.matrices import encoder_matrices
from hasten.passes.rtn import RtnConfig
from hasten.passes.smooth_quant import SmoothQuantConfig, folds
from hasten.records import Config, Rejected
from hasten.tasks.generation_wrappers import Seq2SeqGenerationWrapper
from hasten.tasks.wrappers import LogitsWrapper

FAMILIES = ("albert", "mobilebert", "gemma3_text", "phi3", "mixtral", "qwen2_moe", "t5", "bart", "whisper")
# Passes over numbers go through layers that see differently, and through experts.
SURE = {
    (family, kind) for family in ("gemma3_text", "phi3", "mixtral", "t5", "bart", "whisper", "mobilebert")
    for kind in ("rtn", "hqq", "gptq", "awq", "llm_int8", "wanda", "sparsegpt", "zeroquant", "distill", "qat", "lora")
} | {("whisper", kind) for kind in ("layers", "low_rank", "smooth_quant", "half", "gobo", "magnitude")}  # fmt: skip


def model_of(family: str) -> Any:
    """A random model in the wrapper that passes see."""
    if family in ("albert", "mobilebert"):
        return LogitsWrapper(classifier(family)).eval()
    if family == "whisper":
        return Seq2SeqGenerationWrapper(whisper(encoder_layers=3)).eval()
    return Seq2SeqGenerationWrapper(language_model(family)).eval() if family in SEQ2SEQ else decoder(family)


def classifier(family: str) -> Any:
    import transformers as t

    torch.manual_seed(0)
    settings = {"vocab_size": 66, "max_position_embeddings": 66, "pad_token_id": 1, "embedding_size": 16, **SIZES}
    if family == "albert":
        return shaken(t.AlbertForSequenceClassification(t.AlbertConfig(**settings, num_labels=3)).eval())
    thin = {"intra_bottleneck_size": 16, "num_feedforward_networks": 3}
    return shaken(t.MobileBertForSequenceClassification(t.MobileBertConfig(**settings, **thin, num_labels=3)).eval())


def rows_of(family: str, *, count: int = 24, notes: list[str] | None = None) -> Calibration:
    """Rows of 3 to 13 tokens (of Whisper: sounds) with targets where the wrapper has a loss for them."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for length in rng.integers(3, 14, size=count):
        ids = rng.integers(4, 60, (1, length))
        sound = rng.normal(size=(1, BANDS, FRAMES)).astype(np.float32)
        rows.append({"input_features": sound} if family == "whisper" else {
            "input_ids": ids, "attention_mask": np.ones_like(ids)})  # fmt: skip
    targets: Any = None
    if family in ("albert", "mobilebert"):
        targets = list(np.arange(count) % 3)
    elif family not in (*SEQ2SEQ, "whisper"):
        targets = [row["input_ids"][0] for row in rows]
    heard = [] if notes is None else notes
    return Calibration(
        rows, targets=targets, original=model_of(family), seed=3,
        listen=lambda progress: heard.append(progress.what) if progress.note else None,
    )  # fmt: skip


def matrices(model: Any) -> dict[str, torch.Tensor]:
    return {n: m.weight.detach().clone() for n, m in model.hf.named_modules() if isinstance(m, nn.Linear)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_works_or_says_why_not(family: str, kind: str) -> None:
    given = rows_of(family)
    found: Any = None
    with suppress(Rejected):  # and nothing else: its reason is a sentence
        found = run_pass(model_of(family), SETTINGS[kind][0], given)
    assert found is None or torch.isfinite(said(found, given)).all()
    assert found is not None or (family, kind) not in SURE


@pytest.mark.parametrize("family", ["t5", "bart", "whisper"])
def test_int8_of_both_stacks(family: str) -> None:
    """The mask of a batch is the encoder's; what a decoder's maps take are its own tokens."""
    whole, given = model_of(family), rows_of(family)
    made = run_pass(copy.deepcopy(whole), LlmInt8Config(), given)
    before, after = matrices(whole), matrices(made)
    head = {"proj_out" if family == "whisper" else "lm_head"}
    assert {name for name in before if torch.equal(before[name], after[name])} == head
    wanted = said(whole, given)
    assert float((said(made, given) - wanted).norm()) < 0.1 * float(wanted.norm())


def astray(family: str) -> Any:
    """A student that has something to learn: what is computed and not learnt is as it was."""
    student = model_of(family)
    made = {id(weight) for weight in adapter_of(student, what="a test").computed(student.hf)}
    with torch.no_grad():
        for weight in student.parameters():
            if id(weight) not in made:
                weight.add_(torch.randn_like(weight) * 0.05)
    return student


@pytest.mark.parametrize("family", ["t5", "bart", "whisper"])
def test_an_encoder_decoder_is_taught_to_begin_as_its_teacher_does(family: str) -> None:
    given, student = rows_of(family, count=24), astray(family)
    wanted = said(given.original, given)

    def far() -> float:
        return float((said(student, given) - wanted).square().mean())

    before = far()
    run_pass(student, DistillConfig(epochs=8, batch=8, lr=1e-3), given)
    assert far() < 0.8 * before


@pytest.mark.parametrize("family", ["marian", "whisper"])
def test_sinusoids_are_not_taught(family: str) -> None:
    """Marian's are not even stored: what a training made of them would be lost."""
    student, given = astray(family), rows_of(family)
    positions = adapter_of(student, what="a test").computed(student.hf)
    before = [weight.detach().clone() for weight in positions]
    for _ in range(2):  # the first one leaves every weight free to learn
        run_pass(student, DistillConfig(epochs=1, batch=8, lr=1e-2, embeddings=True), given)
    assert len(before) == (2 if family == "marian" else 1)
    assert all(torch.equal(old, new) for old, new in zip(before, positions, strict=True))


@pytest.mark.parametrize("family", ["bart", "whisper"])
def test_additions_are_all_that_moves_in_either_stack(family: str) -> None:
    student, given = astray(family), rows_of(family)
    made = run_pass(copy.deepcopy(student), LoraConfig(rank=2, epochs=1, batch=8, lr=1e-2), given)
    changed = {f"{m.name}.weight" for m in encoder_matrices(made, what="a test")}
    assert any(".encoder." in name for name in changed)
    assert any(".decoder." in name for name in changed)
    after = dict(made.hf.named_parameters())
    ranks = set()
    for name, old in student.hf.named_parameters():
        if name in changed:
            ranks.add(int(torch.linalg.matrix_rank((after[name] - old).detach(), rtol=1e-4)))
        elif ".layers." in name or "embed" in name or "conv" in name:
            assert torch.equal(after[name], old), name
    assert ranks <= {0, 1, 2}
    assert 2 in ranks


@pytest.mark.parametrize("by", ["influence", "loss"])
def test_a_layer_of_sounds_that_adds_nothing_goes(by: Literal["influence", "loss"]) -> None:
    whole, given = model_of("whisper"), rows_of("whisper")
    silent = adapter_of(whole, what="a test").layers(whole.hf)[1]
    with torch.no_grad():
        for weight in (*silent.self_attn.out_proj.parameters(), *silent.fc2.parameters()):  # type: ignore[union-attr]
            weight.zero_()
    made = run_pass(copy.deepcopy(whole), LayersConfig(count=2, by=by), given)
    assert (made.hf.config.encoder_layers, made.hf.config.decoder_layers) == (2, 3)
    assert torch.allclose(said(made, given), said(whole, given), atol=1e-5)


@pytest.mark.parametrize("config", [GptqConfig(), LowRankConfig(), ZeroQuantConfig(steps=0)], ids=lambda c: c.kind)
@pytest.mark.parametrize("family", ["bart", "whisper"])
def test_what_walks_through_one_stack_says_what_it_left_alone(family: str, config: Config) -> None:
    notes: list[str] = []
    whole = model_of(family)
    after = matrices(run_pass(copy.deepcopy(whole), config, rows_of(family, notes=notes)))
    same = {name for name, weight in matrices(whole).items() if name in after and torch.equal(after[name], weight)}
    assert {name for name in same if ".decoder." in name} == {n for n in after if ".decoder." in n}
    assert any("the encoder's matrices alone; those of the decoder are as they were" in note for note in notes)
    notes.clear()
    run_pass(model_of("phi3"), config, rows_of("phi3", notes=notes))
    assert not any("alone" in note for note in notes)


@pytest.mark.parametrize("family", ["gemma3_text", "gemma2", "t5", "whisper"])
def test_columns_answer_for_each_other_where_layers_are_called_differently(family: str) -> None:
    whole, given = model_of(family), rows_of(family, count=32)
    wanted = said(whole, given)

    def far(config: Config) -> float:
        made = run_pass(copy.deepcopy(whole), config, given)
        return float((said(made, given) - wanted).square().mean())

    encoder_alone = family in ("t5", "whisper")  # where the decoder stays as it is, too
    assert far(GptqConfig(bits=3, group=32)) < far(RtnConfig(bits=3, group=32)) * (1.0 if encoder_alone else 0.9)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_foldings_pass_routers_by(family: str) -> None:
    whole, given = model_of(family), rows_of(family)
    made = copy.deepcopy(whole)
    routers = [m for name, m in made.hf.named_modules() if name.endswith(("mlp.gate", "shared_expert_gate"))]
    kept = [router.weight.detach().clone() for router in routers]
    experts = {id(expert.down_proj) for layer in made.hf.model.layers for expert in getattr(layer.mlp, "experts", ())}
    pairs = folds(made)
    assert experts
    assert {id(pair.takers[0]) for pair in pairs} >= experts, "each expert's up and down"
    run_pass(made, SmoothQuantConfig(), given)
    assert torch.allclose(said(made, given), said(whole, given), atol=1e-4)
    assert any(not torch.equal(a, b) for a, b in zip(matrices(whole).values(), matrices(made).values(), strict=True))
    assert all(torch.equal(router.weight, old) for router, old in zip(routers, kept, strict=True))
