"""The verbs that meet other programs: export and evaluate."""

from __future__ import annotations

from typing import Any

import click

from hasten.cli.options import HARDWARE, JSON, TRUST, with_options
from hasten.cli.output import emit, names, reporter, stdout


@click.command()
@click.argument("source")
@click.option("--to", required=True, help="gguf (llama.cpp), compressed-tensors (transformers, vLLM) or hf (plain).")
@click.option("--out", required=True, help="The new file (gguf) or folder.")
@click.option("--precision", help="f32, f16 or bf16; for gguf also q8_0, q4_0, q4_1 [default: f32].")
@with_options(TRUST, JSON)
def export(as_json: bool, source: str, **options: Any) -> None:
    """Write SOURCE (a bundle with weights, a checkpoint or a .gguf file) for another program."""
    from hasten.pipeline.export import export as write
    from hasten.pipeline.export import show

    result = write(source, **options)
    emit(result.to_dict()) if as_json else show(result, console=stdout())


@click.command()
@click.argument("model")
@click.option("--tasks", required=True, help="Names of lm-eval's tasks, comma-separated, such as piqa,lambada_openai.")
@click.option("--limit", type=int, help="Only the first so many rows of each task.")
@click.option("--num-fewshot", type=int, help="Examples in front of each question [default: the task's own].")
@click.option("--batch", type=int, default=8, show_default=True, help="Sequences at a time.")
@click.option("--max-length", type=int, help="Cut contexts at this many tokens [default: 2048 or the model's limit].")
@click.option("--include-path", help="Folder with tasks of your own (YAML).")
@click.option("--out", help="Write all results as JSON here, too.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of few-shot examples.")
@with_options(HARDWARE, TRUST, JSON)
def evaluate(as_json: bool, model: str, tasks: str, **options: Any) -> None:
    """Score MODEL (a checkpoint, a .gguf file or a bundle of a language model) with EleutherAI's lm-eval."""
    from hasten.pipeline.evaluate import evaluate as score
    from hasten.pipeline.evaluate import show

    with reporter() as say:
        result = score(model, tasks=names(tasks) or (), reporter=say, **options)
    emit(result.to_dict()) if as_json else show(result, console=stdout())
