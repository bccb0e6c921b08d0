"""The verb that makes a vocabulary smaller: trim-vocabulary."""

from __future__ import annotations

from typing import Any

import click

from hasten.cli.options import JSON, TRUST, with_options
from hasten.cli.output import emit, stdout


@click.command("trim-vocabulary")
@click.argument("checkpoint")
@click.option("--corpus", required=True, multiple=True, help="Texts whose tokens stay: text, tables, prompts or chats.")
@click.option("--out", required=True, help="The new folder.")
@click.option("--text-column", help="Column with the text (found by name otherwise).")
@click.option("--text-pair-column", help="Column with the second text, where there is one.")
@with_options(TRUST, JSON)
def trim_vocabulary(as_json: bool, checkpoint: str, **options: Any) -> None:
    """Write CHECKPOINT (a folder or hub id) with only the tokens that your texts need; any text can still be read."""
    from hasten.pipeline.trim import show
    from hasten.pipeline.trim import trim_vocabulary as trim
    from hasten.records import InputError, Rejected

    try:
        result = trim(checkpoint, **options)
    except Rejected as error:
        raise InputError(
            f"{checkpoint}: {error.reason}",
            expected="a tokenizer that spells words in pieces (BPE, WordPiece or Unigram), and one row a token",
            remedy="give hasten optimize the checkpoint as it is",
        ) from error
    emit(result.to_dict()) if as_json else show(result, console=stdout())
