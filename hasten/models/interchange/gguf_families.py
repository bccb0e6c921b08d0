"""What a GGUF file says of a model beside its weights, for each family that hasten writes.

Takes a transformers config, fills a ``GGUFWriter``, and says how a weight of the family lies in the file. Whatever
llama.cpp has fixed for an architecture (an activation, a pattern of windows, a scale of attention) is compared with the
config, and a model that differs is refused: the file could not say so.

Sources: the keys of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, names from the ``gguf`` package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.records import InputError

# transformers' model_type -> general.architecture
ARCHITECTURES: Mapping[str, str] = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3", "gpt2": "gpt2",
}  # fmt: skip
_GEMMA_LOCAL_BASE = 10_000.0
_GEMMA_PATTERN = 6  # every sixth layer sees everything


@dataclass(frozen=True, slots=True)
class Fixed:
    """An entry of the config that llama.cpp takes for granted: one of ``values``."""

    name: str
    values: tuple[Any, ...]


_NO_BIAS = (Fixed("attention_bias", (False, None)), Fixed("mlp_bias", (False, None)))
_SILU = Fixed("hidden_act", ("silu",))
_FIXED: Mapping[str, tuple[Fixed, ...]] = {
    "llama": (_SILU, *_NO_BIAS, Fixed("pretraining_tp", (1, None))),
    "qwen2": (_SILU,),
    "qwen3": (_SILU, *_NO_BIAS),
    "gemma3_text": (
        Fixed("hidden_activation", ("gelu_pytorch_tanh",)), *_NO_BIAS, Fixed("final_logit_softcapping", (None,)),
        Fixed("attn_logit_softcapping", (None,)), Fixed("use_bidirectional_attention", (False, None)),
    ),
    "gpt2": (
        Fixed("activation_function", ("gelu_new", "gelu_pytorch_tanh")), Fixed("scale_attn_weights", (True,)),
        Fixed("scale_attn_by_inverse_layer_idx", (False,)), Fixed("add_cross_attention", (False,)),
    ),
}  # fmt: skip


def check_family(model: Any) -> str:
    """The architecture's name in a file. Raises InputError for a model that llama.cpp would compute otherwise."""
    config = model.config
    family = str(config.model_type)
    head = type(model).__name__
    if family not in ARCHITECTURES or not head.endswith(("ForCausalLM", "LMHeadModel")):
        raise InputError(
            f"a {head} ({family}) is not written as GGUF",
            expected=f"a model that generates text, of {', '.join(ARCHITECTURES)}",
            remedy="export it --to hf and use llama.cpp's own converter",
        )
    for fixed in _FIXED[family]:
        found = getattr(config, fixed.name, None)
        if found not in fixed.values:
            raise _fixed(family, f"{fixed.name} = {found}", f"{fixed.name} = {fixed.values[0]}")
    if family == "gemma3_text":
        _check_gemma(config)
    elif "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise _fixed(family, "layers with a window", "layers that see everything")
    return ARCHITECTURES[family]


def describe(writer: Any, model: Any) -> None:
    """Write the sizes that the architecture asks for. Raises InputError for positions that a file cannot say."""
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    rope = _rope(config)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
    _describe_scaling(writer, model, rope, width=width)


def laid_out(name: str, weight: Tensor, config: Any) -> Tensor:
    """``weight`` of a model in transformers' own form, as the file has it."""
    family = config.model_type
    if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        return interleaved(weight, heads=heads)
    if family == "gemma3_text" and name.endswith("norm.weight"):  # transformers multiplies by one more
        return weight + 1.0
    if family == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return weight.T
    return weight


def interleaved(weight: Tensor, *, heads: int) -> Tensor:
    """Rows of each head so that the two that rotary positions turn together lie side by side; transformers has them
    half a head apart."""
    outputs, inputs = weight.shape
    return weight.view(heads, 2, outputs // heads // 2, inputs).transpose(1, 2).reshape(outputs, inputs)


def _rope(config: Any) -> Mapping[str, Any]:
    found = config.rope_parameters
    own: Mapping[str, Any] = found["full_attention"] if config.model_type == "gemma3_text" else found
    return own


def _describe_scaling(writer: Any, model: Any, rope: Mapping[str, Any], *, width: int) -> None:
    """Scaled positions: a factor, or one for every frequency of Llama 3's scheme."""
    import gguf

    kind = rope.get("rope_type", "default")
    if kind == "linear" and model.config.model_type != "gemma3_text":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind == "llama3":
        writer.add_tensor("rope_freqs.weight", rotary_factors(model, rope, width=width).numpy())
    elif kind != "default":
        raise _fixed(model.config.model_type, f"rotary positions of the kind {kind}", "default, linear or llama3 ones")


def rotary_factors(model: Any, rope: Mapping[str, Any], *, width: int) -> Tensor:
    """fp32 [width / 2]: by what each plain frequency is divided in this model."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    own, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](model.config, torch.device("cpu"))
    if scale != 1.0:
        raise _fixed(model.config.model_type, f"rotary positions with attention scaled by {scale}", "unscaled ones")
    plain = 1.0 / float(rope["rope_theta"]) ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    factors: Tensor = plain / own.float()
    return factors


def _check_gemma(config: Any) -> None:
    pattern = ["full_attention" if not (n + 1) % _GEMMA_PATTERN else "sliding_attention"
               for n in range(config.num_hidden_layers)]  # fmt: skip
    if list(config.layer_types) != pattern:
        raise _fixed("gemma3_text", "another pattern of windows", "every sixth layer without one")
    if config.query_pre_attn_scalar != config.head_dim:
        raise _fixed("gemma3_text", f"query_pre_attn_scalar = {config.query_pre_attn_scalar}", f"{config.head_dim}")
    local = config.rope_parameters["sliding_attention"]
    if local.get("rope_type", "default") != "default" or float(local["rope_theta"]) != _GEMMA_LOCAL_BASE:
        raise _fixed("gemma3_text", f"local rotary positions {dict(local)}", f"a base of {_GEMMA_LOCAL_BASE:g}")


def _fixed(family: str, got: str, expected: str) -> InputError:
    return InputError(
        f"this {family} has {got}, which llama.cpp does not ask a file for", expected=expected,
        remedy="export it --to hf, and serve it with a program that reads its config",
    )  # fmt: skip
