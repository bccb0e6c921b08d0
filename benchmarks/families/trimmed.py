"""What does a smaller vocabulary save, and does it leave perplexity alone?

``trimmed.py [--model gemma|smollm2] [--tokens N]``: the vocabulary that WikiText-2's valid text and the first N test
tokens need, cut with ``hasten trim-vocabulary``; bytes, parameters, milliseconds a window and perplexity before and
after. Logits of the tokens that stay do not change, but fewer of them share the probability, so the trimmed model's
perplexity is a little lower by construction.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

sys.path.insert(0, str(Path(__file__).parents[1] / "compression"))
from packaged import MODELS, Kept, gguf_of, text_of
from techniques import stored_bytes

import hasten
from hasten.models.load import load_checkpoint
from hasten.records import ModelRef
from hasten.tasks import get_task
from hasten.tasks.tokenize import Tokenizer

_CHARACTERS_PER_TOKEN = 4
_TIMED = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), help="only this one")
    parser.add_argument("--tokens", type=int, default=20_000, help="about so many tokens of the test text")
    parser.add_argument("--window", type=int, default=256, help="tokens of a window")
    options = parser.parse_args()
    kept = Kept(
        "families/trimmed", "vocabulary trimming: bytes and speed at unchanged perplexity",
        {"tokens": options.tokens, "window": options.window},
    )  # fmt: skip
    for name in [options.model] if options.model else MODELS:
        if not kept.has(model=name):
            with tempfile.TemporaryDirectory() as folder:
                kept.add(measured(name, Path(folder), tokens=options.tokens, window=options.window))


def measured(name: str, folder: Path, *, tokens: int, window: int) -> dict[str, Any]:
    """One model before and after."""
    test = text_of("test", characters=tokens * _CHARACTERS_PER_TOKEN)
    (folder / "corpus.txt").write_text(text_of("valid") + test, encoding="utf-8")
    hasten.export(gguf_of(name, folder), to="hf", out=folder / "whole")
    from hasten.pipeline.trim import trim_vocabulary

    made = trim_vocabulary(folder / "whole", corpus=folder / "corpus.txt", out=folder / "trimmed")
    whole = read(folder / "whole", test, window=window, among=pieces(folder / "whole", folder / "trimmed"))
    small = read(folder / "trimmed", test, window=window)
    facts = {key: value for key, value in made.to_dict().items() if key != "path"}
    return {"model": name, "trimming": facts, "whole": whole, "trimmed": small}


def pieces(whole: Path, trimmed: Path) -> np.ndarray[Any, Any]:
    """The ids that stayed, as the whole model numbers them."""
    before, after = (
        tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab() for folder in (whole, trimmed)
    )
    return np.array(sorted(before[piece] for piece in after))


def read(folder: Path, text: str, *, window: int, among: np.ndarray[Any, Any] | None = None) -> dict[str, Any]:
    """Perplexity over plain windows, bytes, and the median time of one window.

    ``among``: also the perplexity where only these ids may come, which is what a trimmed model can choose from.
    """
    import torch

    task = get_task("language-modeling")
    found = load_checkpoint(ModelRef(str(folder)), task=task)
    wrapper = task.wrap(found).eval()
    ids = np.concatenate(
        [e.arrays["input_ids"] for e in Tokenizer(found.tokenizer_json, max_length=10**9).parts(text, stride=0)]
    )
    first = ids[:1] if ids[0] == found.config.get_text_config().bos_token_id else ids[:0]  # Gemma is lost without it
    text_ids = ids[len(first) :]
    starts = range(0, len(text_ids) - window + 1, window)
    windows = [np.concatenate([first, text_ids[start : start + window]]) for start in starts]
    said, spans, among_said = [], [], []
    with torch.inference_mode():
        for part in windows:
            given = torch.from_numpy(np.ascontiguousarray(part))[None]
            started = time.perf_counter()
            out = wrapper(input_ids=given, attention_mask=torch.ones_like(given))
            spans.append(1e3 * (time.perf_counter() - started))
            said.append(out[0, :-1, 0].double().mean().item())
            if among is not None:
                scores = wrapper.hf(input_ids=given).logits[0, :-1].double()
                kept = scores[:, torch.from_numpy(among)].logsumexp(dim=-1)
                own = scores.gather(1, given[0, 1:, None])[:, 0]
                among_said.append((own - kept).mean().item())
    among_it = {"perplexity_among_kept": float(np.exp(-np.mean(among_said)))} if among_said else {}
    return {
        "perplexity": float(np.exp(-np.mean(said))), **among_it, "windows": len(windows),
        "bytes": stored_bytes(wrapper),
        "parameters": sum(weight.numel() for weight in wrapper.parameters()),
        "window_ms": float(np.median(spans[1:][-_TIMED:] or spans)),
    }  # fmt: skip


if __name__ == "__main__":
    main()
