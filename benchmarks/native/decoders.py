"""Small decoders on the native runtime beside llama.cpp, OpenVINO GenAI and transformers, in one run.

    decoders.py [--model gemma|smollm2] [--openvino FOLDER] [--rounds 3] [--turns 2] [--perplexity-tokens 16384] ...

Gemma-3-270M and SmolLM2-135M as they are packaged in four bits: every side gets the same weights, llama.cpp the file
itself. Rows: ``alone`` (time to load, the second time with whatever the first one left; memory), ``race`` (512 tokens
read and 128 written, one stream and sixteen, all sides in turns: how much faster the native ones are, and which share
of the host's bandwidth each uses) and ``perplexity`` (WikiText-2's test text in the same windows for all). Each is
written when it is there, and the same command goes on behind the last one.

Peers that are not installed are left out. llama.cpp should be built for the CPU that it runs on:
``CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python --no-binary llama-cpp-python``; without it the wheel of
xllamacpp stands in, which knows AVX2 at most and tells no logits. For OpenVINO GenAI ``--openvino`` names a folder with
``gemma-int8``, ``gemma-int4``, ``smollm2-int8`` and ``smollm2-int4``, each written by ``optimum-cli export openvino
--task text-generation-with-past --weight-format int8|int4`` from the folder that ``--export-plain FOLDER`` writes.

Targets: one stream 2.5x llama.cpp at a perplexity no worse than its, int8 2x transformers bf16, a prompt of 512 tokens
1.2x llama.cpp, sixteen rows 2.5x OpenVINO GenAI; loaded within a second, resident at most 1.15x weights and cache.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "families"))
from contenders import Contenders, Held
from packaged import MODELS, Kept, gguf_of, text_of
from peers import builds

from hasten.measure.duel import Round, speedup
from hasten.measure.host import usable_cores
from hasten.measure.streams import Course, Lane, look, race, rates
from hasten.measure.worker import Worker
from hasten.pipeline.prompts import Prompts
from hasten.pipeline.step_bytes import cache_bytes
from hasten.records import Rejected
from hasten.runtimes.generation import Generation

QUESTION = "small decoders on the native runtime beside llama.cpp, OpenVINO GenAI and transformers"
NATIVE = ("native int8", "native int8, int5 head", "native int8, int4 head")
WINDOW, SAID = 512, 256


def main() -> None:
    asked = options()
    if asked.export_plain is not None:
        export_plain(asked.export_plain)
        return
    settings = {
        "input_tokens": asked.input_tokens, "output_tokens": asked.output_tokens, "rounds": asked.rounds,
        "turns": asked.turns, "perplexity_tokens": asked.perplexity_tokens, "threads": len(usable_cores()),
        "builds": builds(),
    }  # fmt: skip
    kept = Kept(asked.name, QUESTION, settings)
    peak = bandwidth(kept)
    for model in [asked.model] if asked.model else MODELS:
        if not done(kept, model, asked):
            with tempfile.TemporaryDirectory() as scratch:
                measure(model, opened(model, asked, Path(scratch)), kept, asked, peak)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=sorted(MODELS), help="only this one")
    parser.add_argument("--openvino", type=Path, help="folders for OpenVINO GenAI")
    parser.add_argument("--export-plain", type=Path, help="write both models as plain folders, and end")
    parser.add_argument("--streams", type=lambda text: [int(part) for part in text.split(",")], default=[1, 16])
    parser.add_argument("--input-tokens", type=int, default=512)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--perplexity-tokens", type=int, default=16384)
    parser.add_argument("--name", default="native/decoders", help="of the file with the results")
    return parser.parse_args()


def export_plain(folder: Path) -> None:
    """Both models as transformers reads them, for whoever converts them."""
    import hasten

    for model in MODELS:
        with tempfile.TemporaryDirectory() as scratch:
            hasten.export(gguf_of(model, Path(scratch)), to="hf", out=folder / model)


def opened(model: str, asked: argparse.Namespace, scratch: Path) -> Contenders:
    return Contenders(model, gguf_of(model, scratch), scratch=scratch, genai=asked.openvino, tokens=room(asked))


def room(asked: argparse.Namespace) -> int:
    return max(WINDOW, int(asked.input_tokens) + int(asked.output_tokens)) + 1


def bandwidth(kept: Kept) -> float:
    """Bytes a second that the cores read, measured once."""
    if not kept.has(what="peak"):
        with Worker.start(cores=usable_cores(), threads=len(usable_cores())) as worker:
            kept.add({"what": "peak", "bytes_s": worker.call("hasten.measure.peaks:bandwidth_bytes_s")})
    return float(next(row["bytes_s"] for row in kept.rows if row["what"] == "peak"))


def done(kept: Kept, model: str, asked: argparse.Namespace) -> bool:
    races = all(kept.has(model=model, what="race", streams=count) for count in asked.streams)
    return races and kept.has(model=model, what="all")


def measure(model: str, held: Contenders, kept: Kept, asked: argparse.Namespace, peak: float) -> None:
    """All rows of one model that are not there yet."""
    for side in held.sides:
        if side.reason is not None and not kept.has(model=model, side=side.name, what="refused"):
            kept.add({"model": model, "what": "refused", "side": side.name, "reason": side.reason})
    sides = [side for side in held.sides if side.reason is None]
    prompts = Prompts(held.ids(text_of("valid", characters=300_000)), False, asked.input_tokens, 0, held.input_names)
    for side in sides:
        if not kept.has(model=model, what="alone", side=side.name):
            kept.add({"model": model, "what": "alone", "side": side.name, **alone(side, held, prompts, asked)})
    for count in asked.streams:
        if not kept.has(model=model, what="race", streams=count):
            found = raced(sides, held, prompts, asked, count, peak)
            kept.add({"model": model, "what": "race", "streams": count, **found})
    for side in sides:
        if not kept.has(model=model, what="perplexity", side=side.name):
            kept.add({"model": model, "what": "perplexity", "side": side.name, **perplexity(side, held, asked)})
    kept.add({"model": model, "what": "all"})


def course(held: Contenders, prompts: Prompts, asked: argparse.Namespace, count: int) -> Course:
    written = Generation(asked.output_tokens, ignore_ends=True)
    return Course((count,), prompts, written, asked.rounds, asked.turns, held.start)


# ------------------------------------------------------------------ rows


def alone(side: Held, held: Contenders, prompts: Prompts, asked: argparse.Namespace) -> dict[str, Any]:
    """Loaded twice, each in a fresh process; memory after one answer of one stream."""
    lane, way = Lane(side.name, side.opener(1)), course(held, prompts, asked, 1)
    look(lane, way)
    if lane.refused:
        return {"refused": lane.refused[1]}
    with held.start() as worker:
        facts = side.opener(1)(worker)
        before = facts.rss_before_bytes
    memory = lane.memory[1]
    cache = cache_bytes(held.kept, tokens=asked.input_tokens + asked.output_tokens, precision=side.cache)
    return {
        "load_first_s": lane.loads_s[0], "load_again_s": facts.load_s, "precision": lane.precision,
        "file_bytes": side.bytes, "cache_bytes": cache, "rss_bytes": memory.rss_bytes,
        "peak_rss_bytes": memory.peak_rss_bytes, "rss_before_bytes": before,
        # Without the interpreter and numpy, which every side here has below it.
        "resident_over_weights_and_cache": (memory.rss_bytes - before) / (side.bytes + cache),
    }  # fmt: skip


def raced(
    sides: Sequence[Held], held: Contenders, prompts: Prompts, asked: argparse.Namespace, count: int, peak: float
) -> dict[str, Any]:
    """All sides in turns on the same prompts."""
    way, lanes = course(held, prompts, asked, count), {side.name: Lane(side.name, side.opener(count)) for side in sides}
    for lane in lanes.values():
        look(lane, way)
        print(f"  {lane.name}: {lane.refused or lane.looked}", flush=True)
    running = [lane for lane in lanes.values() if lane.running(way)]
    race(running, way, together=held.fits(running), tell=told)
    found = {}
    for side in sides:
        lane = lanes[side.name]
        if lane.refused:
            found[side.name] = {"refused": lane.refused[count]}
            continue
        behind = asked.input_tokens + asked.output_tokens / 2
        read = side.reads + count * cache_bytes(held.kept, tokens=behind, precision=side.cache)
        one = rates(
            lane.spans[count], streams=count, read=asked.input_tokens, written=asked.output_tokens, rounds=asked.rounds
        )
        gb_s = read / one.tpot_ms.estimate / 1e6
        found[side.name] = {
            **asdict(one), "step_bytes": read, "gb_s": gb_s, "share_of_peak": gb_s * 1e9 / peak,
            "peak_rss_bytes": lane.memory[count].peak_rss_bytes,
        }  # fmt: skip
    return {"sides": found, **ratios(lanes, asked, count)}


def told(text: str, share: float, left_s: float | None) -> None:
    print(f"  {share:4.0%} {text}" + ("" if left_s is None else f" (about {left_s / 60:.0f} min left)"), flush=True)


def ratios(lanes: dict[str, Lane], asked: argparse.Namespace, count: int) -> dict[str, Any]:
    """How many times faster each native side is than each other one, of both phases."""
    spans = {name: lane.spans[count] for name, lane in lanes.items() if count in lane.spans}

    def faster(name: str, than: str, phase: int) -> Any:
        ours, theirs = (rounds_of(spans[side], asked, phase) for side in (name, than))
        return asdict(speedup([Round(a, b) for a, b in zip(theirs, ours, strict=True)]))

    pairs = [(name, than) for name in NATIVE for than in spans if name in spans and than != name]
    return {
        key: {name: {than: faster(name, than, phase) for own, than in pairs if own == name} for name in NATIVE}
        for phase, key in enumerate(("faster_to_read", "faster_to_write"))
    }


def rounds_of(spans: Sequence[tuple[float, float]], asked: argparse.Namespace, phase: int) -> list[Any]:
    """Milliseconds, rounds x turns x 1: of reading the prompt, or of writing behind it."""
    times = [(first if phase == 0 else whole - first,) for first, whole in spans]
    return [tuple(times[start : start + asked.turns]) for start in range(0, len(times), asked.turns)]


def perplexity(side: Held, held: Contenders, asked: argparse.Namespace) -> dict[str, Any]:
    """Windows of 512 tokens, of which the latter half is scored; the next begins 256 tokens later."""
    ids = held.ids(text_of("test"))
    first = [] if held.begins is None else [held.begins]
    inner = WINDOW - len(first)
    starts = range(0, min(asked.perplexity_tokens, len(ids) - inner), SAID)
    windows = [np.array([*first, *ids[start : start + inner]], dtype=np.int64) for start in starts]
    said: list[list[float]] = []
    try:
        with held.start() as worker:
            side.opener(1)(worker)
            for window in windows:  # one by one: a window may take seconds, and a call has a time limit
                said += worker.call_with_session("peers:said_by", windows=[window], count=SAID)
    except Rejected as error:
        return {"refused": str(error)}
    tokens = sum(count for _, count in said)
    return {"perplexity": float(np.exp(-sum(own for own, _ in said) / tokens)), "tokens": tokens, "said": said}


if __name__ == "__main__":
    main()
