"""Where a written token's time goes on the native runtime, and what other numbers for its matrices would change.

    token_profile.py [--model gemma|smollm2] [--context 512] [--turns 8] [--steps 10] [--perplexity-tokens 4096]

One stream behind a context, in this process, variants in turns: milliseconds of the layers alone, of the search for
the likeliest token behind them, the bytes that each reads and the share of the host's bandwidth that this makes, for
several precisions of layers and head, and one and two threads. ``attention_us``: what a layer takes longer behind the
context than behind 16 tokens (both grow while they are timed): reading the tokens between. Then perplexity on
WikiText-2's test text in windows of 512 tokens, and for which share of them the likeliest token is the right one
(``right``). ``screened`` counts for how many tokens an exact search for the likeliest one would have to look at all
eight bits of the head, if it read the upper four of each weight first: those whose logit may still be the largest by
Cauchy and Schwarz.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "families"))
from packaged import MODELS, Kept, gguf_of, text_of

from hasten.measure.host import usable_cores
from hasten.measure.peaks import bandwidth_bytes_s
from hasten.models.load import load_checkpoint
from hasten.native.engine import NOTHING
from hasten.records import ModelRef
from hasten.runtimes import get_runtime
from hasten.runtimes.native import NativeConfig
from hasten.tasks import get_task
from hasten.tasks.tokenize import Tokenizer

VARIANTS = {
    "int8, head int8": NativeConfig(precision="int8-dynamic"),
    "int8, head int8, one thread": NativeConfig(precision="int8-dynamic", threads=1),
    "int8, head int5": NativeConfig(precision="int8-dynamic", head="int5"),
    "int8, head int4": NativeConfig(precision="int8-dynamic", head="int4"),
    "int5 fitted, head int5": NativeConfig(precision="int5", fitted=True, head="int5"),
    "int4 in 32 fitted, head int8": NativeConfig(precision="int4", fitted=True),
    "bf16, head bf16": NativeConfig(precision="bf16"),
}
WINDOW, _WARM, _NEAR = 512, 4, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=sorted(MODELS), default="gemma")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="of each kind in a turn")
    parser.add_argument("--perplexity-tokens", type=int, default=4096)
    asked = parser.parse_args()
    kept = Kept("native/token_profile", "where a written token's time goes on the native runtime", vars(asked))
    with tempfile.TemporaryDirectory() as scratch:
        gguf = gguf_of(asked.model, Path(scratch))
        if not kept.has(what="peak"):
            kept.add({"what": "peak", "bytes_s": bandwidth_bytes_s()})
        peak = float(next(row["bytes_s"] for row in kept.rows if row["what"] == "peak"))
        if not kept.has(what="steps"):
            kept.add({"what": "steps", "variants": timed(gguf, VARIANTS, Path(scratch), asked, peak)})
        for name, config in VARIANTS.items():
            if asked.perplexity_tokens and not kept.has(what="perplexity", variant=name):
                found = perplexity(gguf, config, Path(scratch) / "judged" / name, asked.perplexity_tokens)
                kept.add({"what": "perplexity", "variant": name, **found})
        if not kept.has(what="screened"):
            kept.add({"what": "screened", **screened(gguf)})


def session_of(gguf: Path, config: NativeConfig, folder: Path, *, task: str) -> tuple[Any, Any]:
    """An open session, and the model's tokenizer with its first token where it has one."""
    kind = get_task(task)
    found = load_checkpoint(ModelRef(str(gguf)), task=kind)
    wrapper = kind.wrap(found).eval()
    folder.mkdir(parents=True)
    one = np.ones((1, 8), np.int64)
    runtime, cores = get_runtime("native"), usable_cores()
    runtime.export(
        wrapper, config, calibration=[{"input_ids": one, "attention_mask": one}], folder=folder, cache=folder
    )  # fmt: skip
    return runtime.open(folder, config, threads=len(cores), cores=cores), ids_of(found)


def ids_of(found: Any) -> Callable[[str], np.ndarray[Any, Any]]:
    tokenizer = Tokenizer(found.tokenizer_json, max_length=10**9)
    return lambda text: np.concatenate([part.arrays["input_ids"] for part in tokenizer.parts(text, stride=0)])


def timed(
    gguf: Path, wanted: dict[str, NativeConfig], scratch: Path, asked: argparse.Namespace, peak: float
) -> dict[str, dict[str, Any]]:
    """Of each variant the median milliseconds of a step in which only the layers run, and of a whole one; the variants
    take turns, because the host's speed drifts."""
    folders = {name: scratch / "timed" / name for name in wanted}
    opened = {name: session_of(gguf, wanted[name], folders[name], task="text-generation") for name in wanted}
    contexts = (asked.context, _NEAR)
    steps = {name: [Steps(*own, context=context) for context in contexts] for name, own in opened.items()}
    for _ in range(asked.turns):
        for pair in steps.values():
            for own in pair:
                own.take(asked.steps)
    for session, _ in opened.values():
        session.close()
    return {name: figures(*pair, folders[name], peak) for name, pair in steps.items()}


class Steps:
    """One stream behind its context, and the milliseconds of its steps."""

    def __init__(self, session: Any, ids: Callable[[str], np.ndarray[Any, Any]], *, context: int) -> None:
        prompt = ids(text_of("valid", characters=20_000))[:context][None].astype(np.int64)
        self._decoder = session._make()
        self._token = self._decoder.first({"input_ids": prompt, "attention_mask": np.ones_like(prompt)}, ())
        self.layers: list[float] = []
        self.whole: list[float] = []

    def take(self, count: int) -> None:
        """So many steps of each kind, behind a few that are not timed."""
        for number in range(2 * count + _WARM):
            started = time.perf_counter()
            if number % 2:
                one = np.ones(1, np.int64)
                self._decoder._forward(np.arange(1), one, self._token.astype(np.int32), output=NOTHING)
            else:
                self._token = self._decoder.next(self._token)
            if number >= _WARM:
                (self.layers if number % 2 else self.whole).append(1e3 * (time.perf_counter() - started))


def figures(behind: Steps, near: Steps, folder: Path, peak: float) -> dict[str, Any]:
    """Medians: of steps behind the context, and what it makes of them."""
    all_bytes, head_bytes = weight_bytes(folder)
    layers_ms, whole_ms = float(np.median(behind.layers)), float(np.median(behind.whole))
    near_ms = float(np.median(near.layers))
    count = len(json.loads((folder / "model.json").read_text())["layers"])
    return {
        "tok_s": 1e3 / whole_ms, "whole_ms": whole_ms, "layers_ms": layers_ms, "head_ms": whole_ms - layers_ms,
        "layers_near_ms": near_ms, "attention_us": (layers_ms - near_ms) / count * 1e3,
        "layers_bytes": all_bytes - head_bytes, "head_bytes": head_bytes,
        "share_of_peak": all_bytes / whole_ms * 1e3 / peak,
    }  # fmt: skip


def weight_bytes(folder: Path) -> tuple[int, int]:
    """Of all arrays of the program, and of those of the largest matrix, which is the head (and the table of words)."""
    from safetensors.numpy import load_file

    arrays = load_file(folder / "model.safetensors")
    sizes = [arrays[name].nbytes for name in sorted(arrays) if name.startswith("data.")]
    largest = int(np.argmax(sizes))
    return sum(sizes), sizes[largest] + sizes[largest + 1]  # its steps lie behind it


def perplexity(gguf: Path, config: NativeConfig, folder: Path, tokens: int) -> dict[str, Any]:
    session, ids = session_of(gguf, config, folder, task="language-modeling")
    text = ids(text_of("test", characters=8 * tokens))
    first, rest = text[:1], text[1:]
    begins = text_begins(ids)
    windows = [rest[start : start + WINDOW - 1] for start in range(0, tokens, WINDOW - 1)]
    said, right = [], 0
    for own in windows:
        given = (np.concatenate([first, own]) if begins else own)[None].astype(np.int64)
        out = session.run({"input_ids": given, "attention_mask": np.ones_like(given)})
        said.append(out[0, :-1, 0].astype(np.float64))
        right += int((out[0, :-1, 1] == given[0, 1:]).sum())
    session.close()
    tokens = sum(map(len, said))
    return {"perplexity": float(np.exp(-np.concatenate(said).mean())), "right": right / tokens, "tokens": tokens}


def text_begins(ids: Callable[[str], np.ndarray[Any, Any]]) -> bool:
    """Does every text begin with the same token?"""
    return bool(ids("one")[0] == ids("two")[0])


def screened(gguf: Path) -> dict[str, Any]:
    """How many rows of the head are left after its upper halves, for each token of the test text."""
    import torch

    kind = get_task("text-generation")
    found = load_checkpoint(ModelRef(str(gguf)), task=kind)
    hf = kind.wrap(found).eval().hf
    ids = ids_of(found)(text_of("test", characters=8 * WINDOW))[:WINDOW]
    with torch.inference_mode():
        states = hf.base_model(input_ids=torch.from_numpy(ids[None].astype(np.int64))).last_hidden_state[0].numpy()
    weight = hf.get_output_embeddings().weight.detach().float().numpy()
    step = np.abs(weight).max(axis=1) / 127
    codes = np.rint(weight / np.maximum(step, 1e-30)[:, None])
    upper = np.floor(codes / 16) * 16 + 7.5  # the middle of what the lower half may add
    away = step * np.linalg.norm(codes - upper, axis=1)
    left, right = [], 0
    for state in states[32::16]:  # every sixteenth, behind a little context
        exact, rough = (codes @ state) * step, (upper @ state) * step
        bound = np.linalg.norm(state) * away
        left.append(int((rough + bound >= (rough - bound).max()).sum()))
        right += int(np.argmax(rough) == np.argmax(exact))
    return {
        "states": len(left), "rows": len(weight), "median_left": float(np.median(left)),
        "p90_left": float(np.percentile(left, 90)), "upper_half_alone_is_right": right / len(left),
    }  # fmt: skip


if __name__ == "__main__":
    main()
