"""Rotation is exact, what goes is what matters least, and the result is a plain checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from unit_cases import again, decoder, said, texts_for, tiny

from hasten.models import adapter_for
from hasten.models.reshape import differs_from_config
from hasten.models.rotation import mean_free, rotate, stream_of
from hasten.models.surgery import LowRankLinear, replace_module
from hasten.passes import run_pass
from hasten.passes.calibration import Calibration, Progress
from hasten.passes.distillation import DistillConfig
from hasten.passes.slicing import SliceConfig, principal, slice_states, state_moment
from hasten.passes.units import batches_of
from hasten.records import InputError, Rejected
from hasten.tasks.wrappers import PooledWrapper

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_removed_says_the_same(family: str, tmp_path: Path) -> None:
    model, given = decoder(family), texts_for()
    whole = said(model, given)
    before = model.hf.get_input_embeddings().weight.detach().clone()
    made = slice_states(model, SliceConfig(keep=1.0), given)
    assert torch.allclose(said(made, given), whole, atol=2e-5)
    assert not torch.allclose(made.hf.get_input_embeddings().weight, before, atol=0.1), "it was rotated"
    assert torch.allclose(said(again(made, tmp_path), given), whole, atol=2e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_coordinates(family: str, tied: bool, tmp_path: Path) -> None:
    model, given = decoder(family, tie_word_embeddings=tied), texts_for()
    made = slice_states(model, SliceConfig(keep=0.75), given)
    assert made.hf.config.hidden_size == 24
    assert made.hf.get_input_embeddings().weight.shape == (66, 24)
    assert made.hf.config.tie_word_embeddings is False
    if family in ("llama", "mistral", "qwen3"):  # their configs say how wide a head is
        assert not differs_from_config(made.hf), "a plain checkpoint, which transformers alone can open"
    found = said(made, given)
    assert torch.isfinite(found).all()
    assert torch.allclose(said(again(made, tmp_path), given), found, atol=1e-5)


def confined(family: str, *, rank: int) -> Any:
    """A decoder whose states never leave ``rank`` directions (besides their mean, where the norms take that off)."""
    model = decoder(family)
    adapter = adapter_for(family)
    assert adapter is not None
    stream = stream_of(model.hf, adapter, kind="a test")
    torch.manual_seed(3)
    inside = torch.linalg.qr(torch.randn(32, rank))[0]
    if stream.centred:
        free = mean_free(32).float()
        inside = torch.linalg.qr(free.T @ free @ inside)[0]
    onto = inside @ inside.T
    with torch.no_grad():
        for table in stream.tables:
            table.weight.copy_(table.weight @ onto)
        for writer in stream.writers:
            writer.weight.copy_(onto @ writer.weight)
            if writer.bias is not None:
                writer.bias.copy_(writer.bias @ onto)
    return model


@pytest.mark.parametrize(("family", "rank"), [("llama", 16), ("phi3", 16), ("gpt2", 15)])
def test_states_of_few_directions_lose_nothing(family: str, rank: int) -> None:
    """16 coordinates for 16 directions; a LayerNorm needs one of them for the mean."""
    model, given = confined(family, rank=rank), texts_for()
    whole = said(model, given)
    notes: list[Progress] = []
    listening = Calibration(given.rows, targets=given.targets, listen=notes.append)
    made = slice_states(model, SliceConfig(keep=0.5), listening)
    assert made.hf.config.hidden_size == 16
    # What norms add under the root is by coordinate, and there are half of them.
    assert torch.allclose(said(made, given), whole, atol=2e-3)
    assert "16 of 32 coordinates hold 100.0%" in notes[-1].what


def at_random(width: int, *, seed: int, centred: bool) -> torch.Tensor:
    """Directions as :func:`principal` gives them for this width, but any."""
    torch.manual_seed(seed)
    chosen = torch.randn(32, width - int(centred), dtype=torch.float64)
    free = mean_free(32)
    found: torch.Tensor = torch.linalg.qr(free.T @ free @ chosen if centred else chosen)[0]
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_principal_axes_lose_less_than_random_ones(family: str) -> None:
    given = texts_for(count=40)
    whole = said(decoder(family), given)
    errors = []
    for seed in (None, 0, 1, 2):
        model, adapter = decoder(family), adapter_for(family)
        assert adapter is not None
        if seed is None:
            model = slice_states(model, SliceConfig(keep=0.75), given)
        else:
            stream = stream_of(model.hf, adapter, kind="a test")
            rotate(model.hf, adapter, stream, at_random(24, seed=seed, centred=stream.centred), head_dim=8)
        errors.append(float((said(model, given) - whole).square().mean()))
    assert errors[0] < min(errors[1:])


def test_one_rotation_holds_less_than_one_for_each_norm() -> None:
    """The paper's rotations, sublayer by sublayer, are a bound: this is what the shared one gives up."""
    model, given = decoder(), texts_for(count=40)
    adapter = adapter_for("llama")
    assert adapter is not None
    norms = [norm for norm, _ in stream_of(model.hf, adapter, kind="a test").norms]
    batches = batches_of(given, rows=40)
    with torch.inference_mode():
        single = [state_moment(model, [norm], batches, centred=False) for norm in norms]
        shared = state_moment(model, norms, batches, centred=False)
    assert torch.allclose(torch.stack(single).sum(dim=0), shared)
    basis = principal(shared, 16, centred=False)
    held = [float((basis.T @ moment @ basis).trace() / moment.trace()) for moment in single]
    own = [float(torch.linalg.eigvalsh(moment)[-16:].sum() / moment.trace()) for moment in single]
    assert all(one <= best + 1e-9 for one, best in zip(held, own, strict=True))
    assert sum(held) / len(held) > 0.5 + 0.05


def test_mean_free_rows() -> None:
    rows = mean_free(7)
    assert torch.allclose(rows @ rows.T, torch.eye(6, dtype=torch.float64))
    assert torch.allclose(rows.sum(dim=1), torch.zeros(6, dtype=torch.float64))


def test_padding_is_no_state() -> None:
    model, given = decoder(), texts_for(count=9)
    norms = [model.hf.model.norm]
    with torch.inference_mode():
        together = state_moment(model, norms, batches_of(given, rows=9), centred=False)
        alone = state_moment(model, norms, given.head(9), centred=False)
    assert torch.allclose(together, alone, rtol=1e-4)


def test_it_can_learn_back() -> None:
    given, original = texts_for(count=32), decoder()
    made = slice_states(decoder(), SliceConfig(keep=0.5), given)
    before = float((said(made, given) - said(original, given)).square().mean())
    lesson = Calibration(given.rows, targets=given.targets, original=original)
    taught = run_pass(made, DistillConfig(epochs=8, batch=8, lr=3e-3), lesson)
    assert float((said(taught, given) - said(original, given)).square().mean()) < before


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("gemma2", "root of its width"),
        ("mixtral", "router"),
        ("t5", "root of its width"),
        ("bart", "root of its width"),
    ],
)
def test_other_families_are_refused_by_name(family: str, why: str) -> None:
    with pytest.raises(Rejected, match=f"slicing cannot handle the family {family} .*{why}.* can handle gpt2, llama"):
        run_pass(decoder(family), SliceConfig(), texts_for())


def test_encoders_are_refused() -> None:
    with pytest.raises(
        Rejected, match=r"slicing cannot handle the family bert .*gpt2, llama, mistral, qwen2, qwen3, phi3"
    ):
        run_pass(tiny(), SliceConfig(), texts_for())


def test_what_has_no_head_and_what_is_thin_already() -> None:
    body = PooledWrapper(decoder().hf.model, pooling="mean", normalize=False)
    with pytest.raises(Rejected, match="gives out the states themselves"):
        run_pass(body, SliceConfig(), texts_for())
    model = decoder()
    replace_module(model.hf, "model.layers.1.mlp.up_proj", LowRankLinear(32, 48, rank=4))
    with pytest.raises(Rejected, match="before the low-rank pass"):
        run_pass(model, SliceConfig(), texts_for())
    with pytest.raises(Rejected, match=r"90% of 32 coordinates in multiples of 8 leaves nothing"):
        run_pass(decoder(), SliceConfig(keep=0.9), texts_for())


@pytest.mark.parametrize("bad", [{"keep": 0.0}, {"keep": 1.1}, {"round_to": 0}, {"rows": 0}])
def test_settings_that_mean_nothing_are_errors(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        SliceConfig(**bad)
