"""A checkpoint with only the tokens that the user's texts need: ``hasten trim-vocabulary``.

Takes a checkpoint and texts, writes a checkpoint folder as transformers writes it, smaller by the rows of the word
table (and of the head) that the texts never touch. It is done before everything else, since the ids of all data change
with it: what comes out goes into ``hasten optimize``, or anywhere else, as any checkpoint does.

Everything is made beside the target and moved there at the end, after the new tokenizer has been held against the old
one on all of the texts.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hasten.models.silence import silence_transformers
from hasten.pipeline.corpus import read_corpus, template_ids
from hasten.records import Columns, InputError, ModelRef, Rejected

_TOKENIZER = "tokenizer.json"
# What the old vocabulary is written in; the new one is in tokenizer.json alone.
_OLD = (
    "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "spm.model",
    "tekken.json", "source.spm", "target.spm", "added_tokens.json",
)  # fmt: skip
# Written anew with the new ids, or not at all.
_IDS = (_TOKENIZER, "generation_config.json")
_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".index.json", ".ot", ".xml", ".tflite",
    ".model",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrimmedCheckpoint:
    """What was written where. ``parameters`` are the model's; ``notes`` say what could not be looked at."""

    path: str
    texts: int
    tokens_before: int
    tokens_after: int
    parameters_before: int
    parameters_after: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def trim_vocabulary(
    source: str | Path,
    *,
    corpus: str | Path | Sequence[str | Path],
    out: str | Path,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> TrimmedCheckpoint:
    """Write the checkpoint ``source`` with the tokens that the texts of ``corpus`` use to the folder ``out``.

    ``corpus`` are files as ``hasten optimize`` takes them: plain text, tables with a column of texts, prompts with
    completions, or conversations (``messages``). Raises InputError for what is no checkpoint with a fast tokenizer, for
    texts that cannot be read, and an ``out`` that is taken; Rejected for a vocabulary that cannot lose words. Nothing
    is left at ``out`` then.
    """
    from hasten.models.inspect import inspect_checkpoint
    from hasten.models.token_file import trimmed
    from hasten.models.token_table import keep_rows, needed_ids, rows_of

    target = Path(out).expanduser()
    if target.exists():
        raise InputError(f"{target} exists", expected="a folder that is not there yet", remedy="give another --out")
    ref = ModelRef(str(source), revision=revision, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    files = inspect_checkpoint(ref, task=None)
    if files.gguf or files.config.get("quantization_config"):
        raise InputError(
            f"{source} holds quantized weights", expected="a checkpoint in floats",
            remedy="trim the one that it was made from, or what 'hasten export ... --to hf' makes of it",
        )  # fmt: skip
    sources = [corpus] if isinstance(corpus, (str, Path)) else list(corpus)
    spoken = read_corpus(sources, columns=Columns(text=text_column, text_pair=text_pair_column))
    texts = spoken.texts
    tokenizer = _tokenizer(files.folder, trust_remote_code=trust_remote_code)
    encode = _encoder(tokenizer.backend_tokenizer.to_str())
    used = {number for text in texts for number in encode(text)}
    filled_in, notes = template_ids(tokenizer, spoken.talks)
    model, save = _model(files)
    before = (rows_of(model), sum(p.numel() for p in model.parameters()))
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    found = trimmed(content, used=used | filled_in, needed=needed_ids(model), rows=rows_of(model))
    keep_rows(model, found.kept)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        save(made)
        _write_tokenizer(tokenizer, found.content, {old: new for new, old in enumerate(found.kept)}, made)
        _copy_rest(files.folder, made)
        again = _tokenizer(made, trust_remote_code=trust_remote_code)
        _check_same(encode, again, texts, found.kept)
        _check_added(content, again, found.kept)
        made.rename(target)
    return TrimmedCheckpoint(
        path=str(target), texts=len(texts), tokens_before=before[0], tokens_after=len(found.kept),
        parameters_before=before[1], parameters_after=sum(p.numel() for p in model.parameters()), notes=notes,
    )  # fmt: skip


def show(result: TrimmedCheckpoint, *, console: Any) -> None:
    """For people."""
    counts = f"{result.tokens_after:,} of {result.tokens_before:,} tokens, for {result.texts:,} texts"
    console.print(f"{result.path}: {counts}", markup=False)
    share = 100 * result.parameters_after / result.parameters_before
    console.print(f"{result.parameters_after:,} of {result.parameters_before:,} parameters ({share:.1f}%)")
    for note in result.notes:
        console.print(f"note: {note}", markup=False)


def _tokenizer(folder: Path, *, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # broken JSON, a missing vocabulary, an unknown class: all of them the checkpoint's
        raise InputError(
            f"{folder} has no usable tokenizer ({str(error).strip()[:200]})",
            expected="one that transformers can read",
            remedy="save the tokenizer into the folder with save_pretrained",
        ) from error
    if not found.is_fast:
        raise InputError(
            f"the tokenizer of {folder} has no fast form", expected=_TOKENIZER, remedy="save a fast tokenizer there"
        )
    return found


def _encoder(content: str) -> Callable[[str], list[int]]:
    """Whole texts to ids, whatever the file says of cutting and padding."""
    from tokenizers import Tokenizer

    own = Tokenizer.from_str(content)
    own.no_truncation()
    own.no_padding()
    return lambda text: list(own.encode(text).ids)


def _model(files: Any) -> tuple[Any, Callable[[Path], None]]:
    """The model as its own class, in its own type, and what writes it with the weights that it was stored with."""
    import torch

    from hasten.models.classes import class_name, transformers_class
    from hasten.models.left_over import check_layers
    from hasten.models.reshape import is_ours, open_model, save_model

    silence_transformers()
    name = class_name(files.config)
    cls = transformers_class(name)
    if cls is None:
        raise InputError(
            f"{files.folder} is saved as {name}", expected="a class of transformers in config.json's architectures",
            remedy="save the model again with save_pretrained",
        )  # fmt: skip
    if is_ours(files.folder):
        own = open_model(cls, files.folder, attention="sdpa", dtype=torch.float32)
        return own, lambda folder: save_model(own, folder)
    model, info = cls.from_pretrained(
        files.folder, dtype="auto", use_safetensors=not files.pickled, local_files_only=True,
        output_loading_info=True,
    )  # fmt: skip
    if info.get("mismatched_keys"):
        raise InputError(
            f"weights of {files.folder} are of another shape, such as {info['mismatched_keys'][0]}",
            expected="weights that fit the config.json beside them", remedy="save the model again",
        )  # fmt: skip
    check_layers(model, info["unexpected_keys"], folder=files.folder)
    absent = set(info["missing_keys"])  # a pooler that nobody trained: random, so not to be written
    buffers = {name for name, _ in model.named_buffers()}
    random = sorted(key for key in absent if key not in buffers and "pooler." not in key)
    if random:
        raise InputError(
            f"{len(random)} weights of {files.folder} are missing, such as {random[0]}",
            expected="every weight of the model", remedy="save the whole model again",
        )  # fmt: skip

    def save(folder: Path) -> None:
        kept = {key: value for key, value in model.state_dict().items() if key not in absent}
        model.save_pretrained(folder, state_dict=kept)

    return model.eval(), save


def _write_tokenizer(tokenizer: Any, content: dict[str, Any], numbers: dict[int, int], folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    for name in _OLD:
        (folder / name).unlink(missing_ok=True)
    (folder / _TOKENIZER).write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        old = settings.get("added_tokens_decoder")
        if old:
            settings["added_tokens_decoder"] = {str(numbers[int(i)]): t for i, t in old.items() if int(i) in numbers}
        path.write_text(json.dumps(settings, ensure_ascii=False, indent=2), encoding="utf-8")


def _check_same(encode: Callable[[str], list[int]], made: Any, texts: Sequence[str], kept: Sequence[int]) -> None:
    """Raises Rejected where the tokenizer, opened again, makes other tokens of a text than the old one did."""
    again = _encoder(made.backend_tokenizer.to_str())
    for text in texts:
        if [kept[number] if number < len(kept) else -1 for number in again(text)] != encode(text):
            raise Rejected(
                "vocabulary", f"the trimmed tokenizer, opened as a {type(made).__name__}, reads {text[:40]!r} in other "
                "tokens than before",
            )  # fmt: skip


def _check_added(content: dict[str, Any], made: Any, kept: Sequence[int]) -> None:
    """Raises Rejected where an added token, which no text need hold, has another id than its row."""
    numbers = {old: new for new, old in enumerate(kept)}
    for token in content.get("added_tokens") or ():
        wanted = numbers.get(token["id"])
        found = made.backend_tokenizer.token_to_id(token["content"])
        if wanted is not None and found != wanted:
            raise Rejected(
                "vocabulary", f"the trimmed tokenizer gives {token['content']!r} the id {found}, not {wanted}"
            )


def _copy_rest(source: Path, folder: Path) -> None:
    """What else lies in the checkpoint: pooling, image settings, licence; not weights, nor the old vocabulary."""
    for path in _others(source):
        place = folder / path.relative_to(source)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def _others(source: Path) -> Iterator[Path]:
    for path in sorted(source.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
        if path.is_file() and not hidden and path.name not in (*_OLD, *_IDS) and not path.name.endswith(_WEIGHTS):
            yield path
