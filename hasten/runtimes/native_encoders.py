"""Encoders as flat programs: BERT, RoBERTa, DistilBERT, ELECTRA and ALBERT, whole or cut, with the heads of the tasks.

Takes a task's wrapper, gives the program whose output is the wrapper's, for real tokens alone. Layers are found through
the family's adapter, so they may be unequal, few, or without heads. What the engine cannot say is Rejected with the
reason: other families, learnt prefixes, other norms and activations. Heads stay in fp32.

Legend: H hidden size, A heads of a layer, D width of a head, T tokens, S sequences, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hasten.models import adapter_for
from hasten.models.adapter import Adapter, AttentionParts
from hasten.models.precision import kept_fp32
from hasten.models.prefix import has_prefixes
from hasten.native.program import Activation, Attention, Normalize, Pool, Program
from hasten.records import Rejected
from hasten.runtimes.native_draft import Draft, activation_of, check_matrices
from hasten.runtimes.native_weights import Precision
from hasten.tasks.wrappers import LogitsWrapper, PooledWrapper, ScoreWrapper, SpanWrapper, TokensWrapper


@dataclass(frozen=True, slots=True)
class Lowered:
    """``per_token``: the program gives [T, C], else [S, C]. ``notes`` say what the matrices became."""

    program: Program
    per_token: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Head:
    """How a family's classifier of whole texts reads the first token's state: ``dense`` with its ``activation``, then
    ``out``; names of modules of the transformers model."""

    dense: str
    activation: Activation
    out: str


# Family -> its classifier, and the matrix between embeddings of another width and the layers, if there is one.
_FAMILIES: Mapping[str, tuple[Head, str]] = {
    "bert": (Head("bert.pooler.dense", "tanh", "classifier"), ""),
    "roberta": (Head("classifier.dense", "tanh", "classifier.out_proj"), ""),
    "xlm-roberta": (Head("classifier.dense", "tanh", "classifier.out_proj"), ""),
    "distilbert": (Head("pre_classifier", "relu", "classifier"), ""),
    "electra": (Head("classifier.dense", "gelu_erf", "classifier.out_proj"), "embeddings_project"),
    "albert": (Head("albert.pooler", "tanh", "classifier"), "encoder.embedding_hidden_mapping_in"),
}


def lowered(wrapper: Any, *, precision: Precision, group: int, embeddings: bool, fitted: bool = False) -> Lowered:
    """The program of a wrapper around an encoder. Raises Rejected."""
    model, family = wrapper.hf, str(wrapper.hf.config.model_type)
    adapter = adapter_for(family)
    if family not in _FAMILIES or adapter is None:
        raise Rejected(
            "export", f"the native engine runs the encoders {', '.join(_FAMILIES)}, and this is a {family} model"
        )
    task = _TASKS.get(type(wrapper))
    if task is None:
        raise Rejected("export", f"the native engine has no head for {type(wrapper).__name__}")
    if has_prefixes(model):
        raise Rejected("export", "learnt prefixes stand in front of the keys, and the native engine has no place there")
    if getattr(model.config, "position_embedding_type", "absolute") not in (None, "absolute"):
        raise Rejected("export", "positions between tokens (relative ones) are not known to the native engine")
    draft = begun(model, precision=precision, group=group, fitted=fitted)
    states, hidden = _embedded(draft, adapter, model, family, int8=embeddings)
    activation = activation_of(model.config)
    for layer in _layers(adapter, model):
        _layer(draft, adapter, layer, states=states, hidden=hidden, activation=activation)
    output = task(draft, wrapper, states, hidden)
    return Lowered(draft.program(output), per_token=bool(wrapper.per_token), notes=draft.notes)


def begun(model: Any, *, precision: Precision, group: int, fitted: bool = False) -> Draft:
    """A draft that knows which modules a pass wants in fp32."""
    modules = dict(model.named_modules())
    keep = kept_fp32(model)
    lost = [name for name in keep if name not in modules]
    if lost:
        raise Rejected("export", f"{lost[0]} is to stay in fp32, and the model has no such module")
    return Draft(precision=precision, group=group, fitted=fitted, kept=[modules[name] for name in keep])


def _embedded(draft: Draft, adapter: Adapter, model: Any, family: str, *, int8: bool) -> tuple[int, int]:
    """The buffer of the states in front of the first layer, and their width H."""
    block: Any = adapter.embeddings(model)
    types = getattr(block, "token_type_embeddings", None)
    places = block.position_embeddings
    width = block.word_embeddings.embedding_dim
    first = draft.buffer("states", width)
    draft.embed(
        first,
        draft.table(block.word_embeddings, int8=int8),
        positions=draft.table(places),
        types=None if types is None else draft.table(types),
        # RoBERTa and its kin count from behind the padding index.
        first_position=0 if places.padding_idx is None else int(places.padding_idx) + 1,
    )
    draft.norm(block.LayerNorm, input=first, output=first)
    name = _FAMILIES[family][1]
    project = _found(model.base_model, name) if name else None
    if project is None:
        return first, width
    states = draft.buffer("states", project.out_features)
    if states == first:  # a product cannot write what it reads
        states = draft.buffer("projected", project.out_features)
    draft.head(project, input=first, output=states)
    return states, project.out_features


def _layers(adapter: Adapter, model: Any) -> list[nn.Module]:
    """In the order in which they run; shared ones several times."""
    (stack,) = adapter.stacks(model)
    if not stack.shared:
        return list(stack.layers)
    if len(stack.layers) > 1:
        raise Rejected("export", f"the native engine does not know {len(stack.layers)} shared layers that run in turn")
    return list(stack.layers) * stack.depth


def _layer(
    draft: Draft, adapter: Adapter, layer: nn.Module, *, states: int, hidden: int, activation: Activation
) -> None:
    """A layer with its norms behind the sums; ``states`` [T, H] in place."""
    attention, ffn, norms = adapter.attention(layer), adapter.ffn(layer), adapter.norms(layer)
    if adapter.norm_first or len(norms) != 2 or ffn.gate is not None:
        raise Rejected("export", "the native engine has encoders whose norms stand behind two sublayers, without gates")
    check_matrices([*attention.inputs, attention.output, *ffn.inputs, ffn.down])
    said = draft.buffer("said", hidden)
    context = attended(draft, attention, states)
    draft.matrix(attention.output, input=context, output=said)
    draft.norm(norms[0], input=said, residual=states, output=states)
    inner = draft.buffer("inner", ffn.neurons)
    draft.matrix(ffn.up, input=states, output=inner, activation=activation)
    draft.matrix(ffn.down, input=inner, output=said)
    draft.norm(norms[1], input=said, residual=states, output=states)


def attended(draft: Draft, attention: AttentionParts, states: int) -> int:
    """The buffer [T, A D] of what the heads read; empty where there are none."""
    heads, width = attention.heads, attention.head_dim
    context = draft.buffer("context", heads * width)
    if heads:
        mixed = draft.buffer("mixed", 3 * heads * width)
        draft.matrices([attention.query, attention.key, attention.value], input=states, output=mixed)
        draft.add(Attention(mixed, context, heads, heads, width, width**-0.5, bf16=draft.multiplies_bf16))
    else:  # what is read has been written, if it is nothing
        draft.head(attention.query, input=states, output=context)
    return context


# --------------------------------------------------------------------------- heads


def _classified(draft: Draft, wrapper: Any, states: int, hidden: int) -> int:
    """[S, C]"""
    head = _FAMILIES[str(wrapper.hf.config.model_type)][0]
    dense, out = (_required(wrapper.hf, name) for name in (head.dense, head.out))
    first = draft.buffer("pooled", hidden, "sequence")
    draft.add(Pool(states, first, "first"))
    inner = draft.buffer("head", dense.out_features, "sequence")
    draft.head(dense, input=first, output=inner, activation=head.activation)
    output = draft.buffer("output", out.out_features, "sequence")
    draft.head(out, input=inner, output=output)
    return output


def _tagged(draft: Draft, wrapper: Any, states: int, hidden: int) -> int:
    """[T, C]"""
    return _of_tokens(draft, _required(wrapper.hf, "classifier"), states, hidden)


def _spans(draft: Draft, wrapper: Any, states: int, hidden: int) -> int:
    """[T, 2]: of each token as start and as end."""
    out = _required(wrapper.hf, "qa_outputs")
    if out.out_features != 2:
        raise Rejected("export", f"a head of {out.out_features} outputs does not say where an answer starts and ends")
    return _of_tokens(draft, out, states, hidden)


def _of_tokens(draft: Draft, out: Any, states: int, hidden: int) -> int:
    del hidden
    output = draft.buffer("output", out.out_features)
    draft.head(out, input=states, output=output)
    return output


def _pooled(draft: Draft, wrapper: Any, states: int, hidden: int) -> int:
    """[S, H]"""
    output = draft.buffer("pooled", hidden, "sequence")
    draft.add(Pool(states, output, "first" if wrapper.pooling == "cls" else "mean"))
    if wrapper.normalize:
        draft.add(Normalize(output, output, 1e-12))
    return output


_TASKS: Mapping[type, Callable[[Draft, Any, int, int], int]] = {
    LogitsWrapper: _classified, ScoreWrapper: _classified, TokensWrapper: _tagged, SpanWrapper: _spans,
    PooledWrapper: _pooled,
}  # fmt: skip


def _found(model: Any, name: str) -> Any:
    """The module of a dotted name, if there is one."""
    for part in name.split("."):
        model = getattr(model, part, None)
    return model


def _required(model: Any, name: str) -> Any:
    found = _found(model, name)
    if not isinstance(found, nn.Linear):
        raise Rejected("export", f"{type(model).__name__} has no matrix {name} for its head")
    return found
