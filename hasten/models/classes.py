"""The classes of transformers that a checkpoint may name as its own.

Takes a parsed config or a name, gives the class. A name from a file reaches models alone: transformers has much else
that can be called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def class_name(config: Mapping[str, Any]) -> str:
    """The first of ``architectures``; ``"none"`` without one."""
    found = config.get("architectures")
    return str(found[0]) if isinstance(found, (list, tuple)) and found else "none"


def transformers_class(name: str) -> Any:
    """The model class of this name, ``None`` where transformers has no such model."""
    import transformers

    found = getattr(transformers, name, None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model else None
