"""MiniLM on Banking77 with only the tokens that its training texts use: size, accuracy on texts that were not among
them, and how many of these are read in other tokens than before."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from banking import MODEL, require_material, save, split_rows
from common import write
from transformers import AutoTokenizer

import hasten


def main() -> None:
    require_material()
    with tempfile.TemporaryDirectory() as scratch:
        rows = split_rows()
        files = {name: str(save(Path(scratch) / f"{name}.csv", own)) for name, own in rows.items()}
        small = Path(scratch) / "small"
        found = hasten.trim_vocabulary(MODEL, corpus=files["calibration"], text_column="text", out=small).to_dict()
        old, new = (AutoTokenizer.from_pretrained(folder) for folder in (MODEL, small))
        texts = [row["text"] for row in rows["test"]]
        longer = [len(new.tokenize(text)) - len(old.tokenize(text)) for text in texts]
        figures: dict[str, Any] = {
            name: found[name] for name in found if name.startswith(("texts", "tokens", "parameters"))
        }
        figures |= {
            "model_bytes": [(folder / "model.safetensors").stat().st_size for folder in (MODEL, small)],
            "accuracy": [accuracy(folder, files) for folder in (MODEL, small)],
            "test_texts": len(texts),
            "read_otherwise": sum(old.tokenize(text) != new.tokenize(text) for text in texts),
            "more_tokens_a_text": sum(longer) / len(texts),
        }
    write("compression/vocabulary", "How small without loss, with the training texts' tokens alone?", figures)


def accuracy(folder: Path, files: dict[str, str]) -> float:
    """Per cent of the test rows."""
    bench = hasten.workbench(
        folder, task="text-classification", calibration_data=files["calibration"],
        selection_data=files["selection"], test_data=files["test"],
    )  # fmt: skip
    return float(bench.score(bench.model()).value)


if __name__ == "__main__":
    main()
