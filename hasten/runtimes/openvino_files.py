"""OpenVINO's two files of a model, so that a graph which is there is whole.

Takes a converted model and the path of its graph (.xml). The weights (.bin) lie beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_whole(model: Any, path: Path) -> None:
    """Write both files under other names and rename them, the graph last: whoever finds it finds its weights."""
    import openvino

    unfinished = path.with_name(f"{path.stem}.part.xml")
    openvino.save_model(model, unfinished, compress_to_fp16=False)
    unfinished.with_suffix(".bin").replace(path.with_suffix(".bin"))
    unfinished.replace(path)
