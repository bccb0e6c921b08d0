"""Hooks that stand for as long as somebody looks, and the commonest of them.

Takes hooks as they are registered, gives a context at whose end none of them is left, whatever happened within. Knows
no pass and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Key = TypeVar("Key")


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Within, these hooks stand. Where registering one of them fails, those before it are gone, too."""
    with ExitStack() as standing:
        for handle in handles:
            standing.callback(handle.remove)
        yield


def catching(caught: dict[Key, Tensor], key: Key) -> Callable[..., None]:
    """A hook, before or behind a map, that keeps the last inputs of it under ``key``, without their gradients."""

    def hook(_module: nn.Module, inputs: tuple[Any, ...], *_output: Any) -> None:
        caught[key] = inputs[0].detach()

    return hook
