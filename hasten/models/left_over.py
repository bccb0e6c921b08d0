"""Weights that a checkpoint holds and its model found no place for: which of them mean something?

Takes the names that transformers left over, gives nothing, or the sentence that says what is wrong. Heads of other
tasks, poolers and buffers of older versions may be left over; layers that the config does not count may not, nor may
anything of a checkpoint that was quantized.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hasten.records import InputError

# Made from the config, whatever older files say.
_COMPUTED = (".inv_freq", ".masked_bias")
_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.)")


def check_layers(model: Any, unexpected: Iterable[str], *, folder: Path) -> None:
    """Raise InputError for a weight whose like the model has under another number: the weights have more layers than
    the config says, and the model without them would be another one."""
    base = f"{model.base_model_prefix}."
    placed = {_unnumbered(name).removeprefix(base) for name in model.state_dict() if _NUMBER.search(name)}
    left = sorted(key for key in unexpected if _unnumbered(key).removeprefix(base) in placed)
    if left:
        layers = {_layer(key) for key in left}
        raise InputError(
            f"the weights of {folder} have {len(layers)} layer{'s' * (len(layers) != 1)} that its config.json does not "
            f"count, such as {left[0]}",
            expected="as many layers in config.json as in the weights: without some of them the model is another one",
            remedy="correct the number of layers in config.json, or save the shorter model again with save_pretrained",
        )  # fmt: skip


def check_quantized(unexpected: Iterable[str], *, weights: Sequence[Path]) -> None:
    """Of a checkpoint that was quantized, whatever means something must have found its place. Raises InputError."""
    from safetensors import safe_open

    wanted, zeros = sorted(unexpected), set[str]()
    for path in weights:
        with safe_open(path, framework="pt") as handle:
            own = set(handle.keys()).intersection(wanted)
            zeros |= {key for key in own if not bool(handle.get_tensor(key).float().any())}
    left = [key for key in wanted if key not in zeros and not key.endswith(_COMPUTED)]
    if left:
        raise InputError(
            f"{len(left)} weights of the quantized checkpoint are left over, such as {left[0]}",
            expected="weights that the model has a place for", remedy="use the original checkpoint in 16 or 32 bits",
        )  # fmt: skip


def _unnumbered(name: str) -> str:
    """What all layers' weights of one kind are called alike."""
    return _NUMBER.sub("#", name)


def _layer(key: str) -> str:
    """The name up to its first number."""
    found = _NUMBER.search(key)
    return key if found is None else key[: found.end()]
