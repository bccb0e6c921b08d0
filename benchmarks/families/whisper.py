"""Whisper-tiny's shape through the same command: does it end in a bundle, and do exports compute what PyTorch does?

``whisper.py [--time T]``: random weights, so words mean nothing; recordings are two seconds of noise. First each
runtime's encoder and cached decoder against eager PyTorch (largest difference of logits, same tokens written), then one
``hasten optimize`` from the command line.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
from packaged import Kept

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import verdict_facts

from hasten.measure.host import usable_cores
from hasten.measure.writing import written
from hasten.models.load import load_checkpoint
from hasten.pipeline.result import open_result
from hasten.records import ModelRef, Rejected
from hasten.runtimes import get_runtime
from hasten.runtimes.generation import Generation
from hasten.runtimes.generation_spaces import generation_space
from hasten.runtimes.torch import TorchConfig
from hasten.tasks import get_task

TASK, WORDS, RATE, SECONDS, RECORDINGS, NEW_TOKENS = "speech-recognition", 200, 16_000, 2, 60, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", default="8m", help="how long to search")
    options = parser.parse_args()
    kept = Kept("families/whisper", "Whisper-tiny's shape: parity of exports, and one command", {"time": options.time})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_model(folder / "model")
        save_recordings(folder / "sounds")
        for name in ("onnxruntime", "openvino"):
            if not kept.has(step="parity", runtime=name):
                kept.add({"step": "parity", "runtime": name, **parity(folder / "model", name, folder / name)})
        if not kept.has(step="optimize"):
            kept.add({"step": "optimize", **optimized(folder, time=options.time)})


def save_model(folder: Path) -> None:
    """transformers' defaults are Whisper-tiny's sizes."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor
    from transformers import WhisperForConditionalGeneration as Whisper

    torch.manual_seed(0)
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    model = Whisper(WhisperConfig(**ids, suppress_tokens=None, begin_suppress_tokens=None)).eval()
    model.save_pretrained(folder)
    vocabulary = {
        token: n for n, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(WORDS))])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)


def save_recordings(folder: Path) -> None:
    """Noise with words drawn at random."""
    draw = np.random.default_rng(0)
    folder.mkdir()
    lines = ["file_name,text"]
    for number in range(RECORDINGS):
        samples = (draw.standard_normal(RATE * SECONDS) * 3000).astype("<i2")
        with wave.open(str(folder / f"{number}.wav"), "wb") as stream:
            stream.setnchannels(1)
            stream.setsampwidth(2)
            stream.setframerate(RATE)
            stream.writeframes(samples.tobytes())
        lines.append(f"{number}.wav,{' '.join(f'w{i}' for i in draw.integers(0, WORDS, 6))}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def parity(model: Path, name: str, folder: Path) -> dict[str, Any]:
    """Every config of the runtime against eager PyTorch, on two recordings' features."""
    task = get_task(TASK)
    found = load_checkpoint(ModelRef(str(model)), task=task)
    draw = np.random.default_rng(1)
    bands, frames = found.config.num_mel_bins, 2 * found.config.max_source_positions
    batch = {"input_features": draw.standard_normal((1, bands, frames)).astype(np.float32)}
    cores = usable_cores()
    generation = Generation(new_tokens=NEW_TOKENS, ignore_ends=True, start=tuple(task.wrap(found).start))
    results: dict[str, Any] = {}
    reference = opened(task.wrap(found), "torch", TorchConfig(), batch, folder / "torch", cores)
    logits, ids = reference.run(batch), written(reference, batch, generation)[0]
    for config in generation_space(name, instructions=frozenset(), threads=len(cores)):
        try:
            session = opened(task.wrap(found), name, config, batch, folder / config.label.replace(" ", "-"), cores)
        except Rejected as error:
            results[config.label] = {"rejected": str(error)}
            continue
        results[config.label] = {
            "largest_difference": float(np.abs(session.run(batch) - logits).max()),
            "largest_logit": float(np.abs(logits).max()),
            "same_tokens": float((written(session, batch, generation)[0] == ids).mean()),
        }
        session.close()
    return results


def opened(wrapper: Any, name: str, config: Any, batch: dict[str, Any], folder: Path, cores: tuple[int, ...]) -> Any:
    cache = folder.with_name(f"{folder.name}-cache")
    folder.mkdir(parents=True)
    cache.mkdir()
    get_runtime(name).export(wrapper.eval(), config, calibration=[batch], folder=folder, cache=cache)
    return get_runtime(name).open(folder, config, threads=len(cores), cores=cores)


def optimized(folder: Path, *, time: str) -> dict[str, Any]:
    """The command line as a user types it."""
    out = folder / "out"
    command = [str(Path(sys.executable).parent / "hasten"), "optimize", str(folder / "model"), "--task", TASK]
    command += ["--data", str(folder / "sounds"), "--budget", "quality_drop<=50%", "--time", time, "--out", str(out)]
    done = subprocess.run(command, check=False)
    return {"exit_code": done.returncode, **verdict_facts(open_result(out))}


if __name__ == "__main__":
    main()
