"""A model in the form that transformers itself would have it in: as ``from_pretrained`` expects it, whoever calls it.

Takes a model as it is here (GPT-2's matrices turned into linear layers, each expert a module of its own), gives one of
the same class with the same weights and the layers that transformers makes for its config. A model whose layers have
been cut to other sizes than its config can say has no such form.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hasten.models.precision import KEEP
from hasten.models.reshape import COMPACT, MARK
from hasten.records import InputError


def original_form(model: Any) -> Any:
    """Shares its weights with ``model``. Raises InputError for one without such a form."""
    config = copy.deepcopy(model.config)
    for mark in (MARK, COMPACT, KEEP):  # what hasten alone can read
        if hasattr(config, mark):
            delattr(config, mark)
    with torch.device("meta"):
        fresh = type(model)(config)
    wanted = fresh.state_dict()
    state = _restored(model.state_dict(), fresh)
    odd = sorted({*wanted} ^ {*state}) or sorted(n for n in wanted if wanted[n].shape != state[n].shape)
    if odd:
        raise InputError(
            f"{len(odd)} weights of this {config.model_type} have other sizes than its config says, such as {odd[0]}",
            expected="a model that other programs can build from its config: whole, or cut alike in every layer",
            remedy="keep it as a hasten bundle, or cut layers instead of heads and neurons",
        )
    fresh.load_state_dict(state, assign=True)
    fresh.tie_weights()
    fresh.generation_config = copy.deepcopy(getattr(model, "generation_config", None))
    return fresh.eval()


def _restored(state: dict[str, Tensor], fresh: nn.Module) -> dict[str, Tensor]:
    """The weights under transformers' names, in its layouts."""
    from transformers.pytorch_utils import Conv1D

    found = dict(state)
    for name, module in fresh.named_modules():
        if isinstance(module, Conv1D):
            found[f"{name}.weight"] = state[f"{name}.weight"].T.contiguous()
        elif isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):
            found = _stacked(found, name)
    return found


def _stacked(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Experts that are modules of their own as the two stacks ``gate_up_proj`` [E, 2 N, H] and ``down_proj``
    [E, H, N]; as they are where their widths differ."""
    own = {key: tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
    count = len({key.removeprefix(f"{name}.").partition(".")[0] for key in own})
    gates, ups, downs = (
        [own.get(f"{name}.{number}.{part}_proj.weight") for number in range(count)] for part in ("gate", "up", "down")
    )
    whole = [t for t in (*gates, *ups, *downs) if t is not None]
    if len(whole) != len(own) or len(whole) != 3 * count or len({t.shape for t in (*gates, *ups)}) != 1:  # type: ignore[union-attr]
        return state
    rest = {key: tensor for key, tensor in state.items() if key not in own}
    both = [torch.cat([gate, up]) for gate, up in zip(whole[:count], whole[count : 2 * count], strict=True)]
    return {**rest, f"{name}.gate_up_proj": torch.stack(both), f"{name}.down_proj": torch.stack(whole[2 * count :])}
