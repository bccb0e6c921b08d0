"""How a sentence-transformers folder makes one vector of a text's token states.

Takes a checkpoint folder, gives the pooling (``"mean"`` or ``"cls"``) and whether the
vector is normalized. Steps that hasten does not have are an InputError: without them
the vectors would be others than the model's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hasten.records import InputError

_STEPS = {"Transformer", "Pooling", "Normalize"}
_FLAGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def pooling_of(folder: Path) -> tuple[str, bool]:
    """(pooling, normalize); mean without normalization where ``modules.json`` is absent. Raises InputError."""
    path = folder / "modules.json"
    if not path.is_file():
        return "mean", False
    modules = _parsed(path)
    steps = [str(m.get("type")).rsplit(".", 1)[-1] for m in modules] if isinstance(modules, list) else []
    unknown = [step for step in steps if step not in _STEPS]
    if unknown:
        raise InputError(
            f"{path} has the step {unknown[0]}",
            expected="transformer, pooling and normalization only",
            remedy="use a model without further layers on top",
        )
    settings = folder / "1_Pooling" / "config.json"
    return (_mode(_parsed(settings), settings) if settings.is_file() else "mean"), "Normalize" in steps


def _mode(settings: Any, path: Path) -> str:
    """The one mode, from either spelling: flags ``pooling_mode_<name>``, or ``pooling_mode: <name>``."""
    given = settings if isinstance(settings, dict) else {}
    modes: list[str] = [
        _FLAGS.get(str(name), str(name))
        for name, on in given.items()
        if name.startswith("pooling_mode_") and on is True
    ]
    modes = [str(given["pooling_mode"])] if "pooling_mode" in given else modes or ["mean"]
    if len(modes) != 1 or modes[0] not in _FLAGS.values():
        raise InputError(
            f"{path} pools by {', '.join(modes)}",
            expected="mean over the tokens, or the first token (cls), alone",
            remedy="use a model that pools in one of these ways",
        )
    return modes[0]


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: {error}", expected="valid JSON", remedy="restore the file") from error
