"""What an exported generative model says of itself, so that it can be opened without the code that made it.

Takes the task's wrapper and a batch, writes and reads ``generation.json``. Needs neither torch nor a runtime.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hasten.models.writing import writing_of
from hasten.records import InputError, Rejected, read_as
from hasten.runtimes.runtime import Arrays

FACTS = "generation.json"


@dataclass(frozen=True, slots=True)
class GenerationFacts:
    """``encoder``: is the prompt read by an encoder of its own? ``start``: the first ids that its decoder gets.

    ``longest``: how many tokens the decoder has positions for, ``reads``: an encoder of text; ``None`` where they have
    no end.
    """

    encoder: bool
    input_names: tuple[str, ...]
    start: tuple[int, ...] = ()
    longest: int | None = None
    reads: int | None = None

    def write(self, folder: Path) -> None:
        (folder / FACTS).write_text(json.dumps(asdict(self)))

    def check(self, arrays: Arrays, *, new_tokens: int, start: tuple[int, ...]) -> None:
        """Do these rows fit the model? Raises InputError."""
        missing = [name for name in self.input_names if name not in arrays]
        if missing:
            raise InputError(
                f"no {', '.join(missing)} among the arrays", expected=f"arrays named {', '.join(self.input_names)}",
                remedy="give the model what its processor makes",
            )  # fmt: skip
        if not self.encoder and not (arrays["attention_mask"][:, -1] == 1).all():
            raise InputError(
                "a prompt that ends in padding", expected="prompts of unequal length padded on the left",
                remedy="put the padding in front: the next token follows the last one",
            )  # fmt: skip
        if self.encoder and not start:
            raise InputError(
                "an encoder-decoder without a first id", expected="the ids that its decoder starts with",
                remedy="set decoder_start_token_id in the checkpoint's config, or give them as start",
            )  # fmt: skip
        if self.reads is not None and "input_ids" in arrays and arrays["input_ids"].shape[1] > self.reads:
            raise InputError(
                f"a text of {arrays['input_ids'].shape[1]} tokens",
                expected=f"at most {self.reads}, for which the encoder has positions", remedy="shorten the text",
            )  # fmt: skip
        read = len(start) if self.encoder else int(arrays["input_ids"].shape[1])
        if self.longest is not None and read + new_tokens - 1 > self.longest:
            raise InputError(
                f"{read} tokens to start from and {new_tokens} new ones",
                expected=f"at most {self.longest} tokens together, for which the model has positions",
                remedy="shorten the prompt or ask for fewer new tokens",
            )  # fmt: skip


def is_generative(folder: Path) -> bool:
    """Did a runtime export a model here that writes text?"""
    return (folder / FACTS).is_file()


def read_facts(folder: Path) -> GenerationFacts:
    """What :meth:`GenerationFacts.write` wrote."""
    return read_as(GenerationFacts, json.loads((folder / FACTS).read_text()))


def with_cache(precision: str, kv_cache: str | None) -> str:
    """The precision that runs, with that of what is kept where it is another: ``"fp32, int8 cache"``."""
    return precision if kv_cache is None else f"{precision}, {kv_cache} cache"


def check_cache(kv_cache: str | None, *, generative: bool) -> None:
    """Raise Rejected for a cache's setting where there is none: a setting that does nothing must not look tried."""
    if kv_cache is not None and not generative:
        raise Rejected("export", f"kv_cache {kv_cache}: a model that writes no text keeps no keys and values")


def facts_of(wrapper: Any, example: Arrays) -> GenerationFacts:
    """The facts of a :class:`hasten.tasks.generation_wrappers.GenerationWrapper` (or of an encoder-decoder's)."""
    found, names = writing_of(wrapper.hf), tuple(example)
    reads = found.reads if "input_ids" in names else None
    return GenerationFacts(
        encoder=wrapper.encoder, input_names=names, start=tuple(wrapper.start), longest=found.longest, reads=reads
    )
