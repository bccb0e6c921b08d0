"""Which rows a model's word tables and head keep, and every id that its configs name.

Takes a loaded model and the old ids that stay, in their new order; changes the model in place. Knows nothing of how
tokens are spelt (:mod:`hasten.models.token_file`).

Legend: V old, N new number of tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hasten.models.settling import configs_of
from hasten.records import Rejected

# The ends of the names under which configs and generation configs keep ids.
_IDS = ("_token_id", "_token_ids", "_token_index")
_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")


def rows_of(model: Any) -> int:
    """V: rows of the word table, of which there may be more than tokens."""
    return int(model.get_input_embeddings().weight.shape[0])


def needed_ids(model: Any) -> set[int]:
    """Ids that the model means by itself: those that its configs name, and where positions are counted from the padding
    (RoBERTa) all up to it."""
    named = [(name, value) for config in _configs(model) for name, value in _named(config)]
    found = {i for name, value in named if name.endswith(_IDS) for i in _flat(value)}
    words = model.get_input_embeddings().weight
    for table in [m for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is not words]:
        if table.padding_idx is not None:
            found |= set(range(table.padding_idx + 1))
    return {i for i in found if 0 <= i < rows_of(model)}


@torch.no_grad()
def keep_rows(model: Any, kept: Sequence[int]) -> None:
    """Row n of every word table, of the head and of its bias becomes row ``kept[n]``; configs follow.

    Raises Rejected for a head or a stack whose rows are not the word table's.
    """
    index = torch.as_tensor(list(kept), dtype=torch.long)
    numbers = {old: new for new, old in enumerate(kept)}
    tables = list(_tables(model, rows_of(model)))
    replaced = {id(old): nn.Parameter(old.detach()[index].clone(), old.requires_grad) for old in tables}
    for module in model.modules():
        _replace(module, replaced, index, numbers)
    for config in _configs(model):
        if getattr(config, "vocab_size", None) is not None:
            config.vocab_size = len(kept)
        for name, value in _named(config):
            setattr(config, name, _renamed(value, numbers))


def _tables(model: Any, size: int) -> Iterator[nn.Parameter]:
    """The parameters with a row for every token, each once or more. Raises Rejected where they have not as many."""
    yield model.get_input_embeddings().weight
    stacks = (model.get_encoder(), model.get_decoder()) if model.config.is_encoder_decoder else ()
    head = model.get_output_embeddings()
    named: list[tuple[str, nn.Parameter]] = [
        ("a stack's word table", stack.get_input_embeddings().weight) for stack in stacks
    ]
    named += [("the head", own) for name in ("weight", "bias") if (own := getattr(head, name, None)) is not None]
    for what, own in named:
        if len(own) != size:
            raise Rejected("vocabulary", f"{what} has {len(own)} rows, and the word table {size}")
        yield own


def _replace(module: Any, replaced: Mapping[int, nn.Parameter], index: Tensor, numbers: Mapping[int, int]) -> None:
    """What is tied stays tied: every place that held an old parameter holds the one new."""
    for name, own in list(module.named_parameters(recurse=False)):
        if id(own) not in replaced:
            continue
        setattr(module, name, replaced[id(own)])
        if isinstance(module, nn.Embedding):
            module.num_embeddings = len(index)
            module.padding_idx = None if module.padding_idx is None else numbers.get(module.padding_idx)
        elif isinstance(module, nn.Linear):
            module.out_features = len(index)
    if "final_logits_bias" in dict(module.named_buffers(recurse=False)):  # BART and its kin
        module.final_logits_bias = module.final_logits_bias[:, index].clone()


def _configs(model: Any) -> list[Any]:
    generation = getattr(model, "generation_config", None)
    return [*configs_of(model), *([] if generation is None else [generation])]


def _named(config: Any) -> list[tuple[str, Any]]:
    """The fields of a config that hold ids."""
    return [(n, v) for n, v in vars(config).items() if v is not None and (n.endswith(_IDS) or n in _LISTS)]


def _flat(value: Any) -> Iterable[int]:
    if isinstance(value, (list, tuple)):
        return [i for part in value for i in _flat(part)]
    return [value] if isinstance(value, int) else []


def _renamed(value: Any, numbers: Mapping[int, int]) -> Any:
    """The new ids; lists lose those that are gone, and a number that stands for no token stays."""
    if isinstance(value, (list, tuple)):
        inner = [_renamed(part, numbers) for part in value if not isinstance(part, int) or part in numbers]
        return [part for part in inner if part != []]
    return numbers.get(value, value)
