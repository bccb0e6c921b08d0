"""What the tests of every family ask of its adapter: surgery equals masking, and a cut model survives its folder."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from tiny_models import BANDS, FRAMES
from torch import nn

from hasten.models import adapter_for
from hasten.models.adapter import Adapter, AttentionParts, FeedForward
from hasten.models.reshape import MARK, open_model, save_model
from hasten.models.surgery import LowRankLinear, keep_heads, keep_layers, keep_neurons, replace_module, stack_of

IDS = torch.tensor([[4, 10, 11, 12, 30, 31, 32, 5], [4, 20, 21, 22, 23, 5, 1, 1]])
SAID = torch.tensor([[1, 40, 41, 42], [1, 50, 51, 52]])
REAL = IDS != 1
SOUNDS = torch.randn(2, BANDS, FRAMES, generator=torch.Generator().manual_seed(0))


def adapter(model: Any) -> Adapter:
    found = adapter_for(model.config.model_type)
    assert found is not None
    return found


def layer(model: Any, number: int, *, stack: str | None = None) -> nn.Module:
    return stack_of(model, adapter(model), stack).layers[number]


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    """[tokens, words]: of the real tokens, or of those that a decoder beside an encoder says."""
    given = {"input_ids": IDS, "attention_mask": REAL.long()} if reads(model) else {"input_features": SOUNDS}
    if model.config.is_encoder_decoder:
        return model(**given, decoder_input_ids=SAID).logits.flatten(0, 1)  # type: ignore[no-any-return]
    return model(**given).logits[REAL]  # type: ignore[no-any-return]


def reads(model: Any) -> bool:
    """Does it take texts, and not sounds?"""
    return bool(model.main_input_name == "input_ids")


def close(first: Any, second: Any) -> bool:
    return torch.allclose(logits(first), logits(second), atol=2e-5)


def mask_heads(parts: AttentionParts, keep: Sequence[int]) -> None:
    """Zero columns of the output projection: what the other groups of heads say is not heard."""
    gone = [group for group in range(parts.groups) if group not in keep]
    with torch.no_grad():
        parts.output.weight.view(len(parts.output.weight), parts.groups, -1)[:, gone] = 0.0


def mask_neurons(ffn: FeedForward, keep: Sequence[int]) -> None:
    gone = [neuron for neuron in range(ffn.neurons) if neuron not in keep]
    with torch.no_grad():
        ffn.down.weight[:, gone] = 0.0


@contextmanager
def skipped(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within, these layers give the states that they take; what else they give stays."""

    def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]

    with ExitStack() as hooks:
        for own in layers:
            hooks.callback(own.register_forward_hook(hook).remove)
        yield


def reopened(model: Any, folder: Path, *, marked: bool = True) -> Any:
    """The model as it comes back from a folder."""
    save_model(model, folder)
    found = open_model(type(model), folder, attention="sdpa", dtype=torch.float32)
    assert bool(getattr(found.config, MARK, False)) is marked
    return found


def without_layers(
    whole: Any, keep: Sequence[int], folder: Path, *, stack: str | None = None, marked: bool = False
) -> Any:
    """The model with only these layers: it says what the whole one says without the others, with a cache and without
    one, and comes back from a folder, which needs a mark or none."""
    cut = copy.deepcopy(whole)
    keep_layers(cut, adapter(cut), keep, stack=stack)
    count = len(stack_of(whole, adapter(whole), stack).layers)
    with skipped([layer(whole, number, stack=stack) for number in range(count) if number not in keep]):
        assert close(cut, whole)
    assert spoken(cut, cached=True) == spoken(cut, cached=False)
    assert close(reopened(cut, folder, marked=marked), cut)
    return cut


def take_units(masked: Any, cut: Any) -> None:
    """Two of four heads in the second layer, and all but five neurons in the third: unheard in one, gone in the
    other."""
    own = adapter(cut)
    mask_heads(own.attention(layer(masked, 1)), [1, 2])
    mask_neurons(own.ffn(layer(masked, 2)), range(5))
    keep_heads(own.attention(layer(cut, 1)), [1, 2])
    keep_neurons(own.ffn(layer(cut, 2)), range(5))
    assert (own.attention(layer(cut, 1)).heads, own.ffn(layer(cut, 2)).neurons) == (2, 5)


def reshape(model: Any) -> None:
    """Fewer layers, heads and neurons, and a matrix of a low rank."""
    own = adapter(model)
    keep_layers(model, own, [0, 2])
    assert model.config.num_hidden_layers == 2
    keep_heads(own.attention(layer(model, 0)), [3])
    keep_neurons(own.ffn(layer(model, 1)), range(7, 20))
    up = own.ffn(layer(model, 0)).up
    name = next(n for n, m in model.named_modules() if m is up)
    replace_module(model, name, LowRankLinear(up.in_features, up.out_features, rank=3))


@torch.inference_mode()
def spoken(model: Any, *, cached: bool) -> list[list[int]]:
    """Six tokens for each row, one after the other; a cache of keys and values must change nothing."""
    from transformers import GenerationMixin

    ids = IDS[:, :5]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if reads(model) else {"input_features": SOUNDS}
    # Whisper's own form of it cuts long recordings into pieces, and asks for what only its trained checkpoints say.
    return GenerationMixin.generate(  # type: ignore[no-any-return]
        model, **given, do_sample=False, max_new_tokens=6, min_new_tokens=6, use_cache=cached, pad_token_id=1
    ).tolist()
