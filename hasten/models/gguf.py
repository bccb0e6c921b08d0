"""A GGUF file as a checkpoint: its weights as plain fp32 matrices, and its tokenizer.

Takes a path, gives a model as any other checkpoint would, and tokenizer files by name. transformers maps names and
layouts, and undoes the quantization: what the file was before it was quantized is lost, so whatever is compared with
this model is compared with the dequantized one, never with "fp32".

By default transformers leaves such weights packed wherever it has kernels for them; neither surgery nor a pass nor
``save_pretrained`` works on these. So unpacking is asked for here (``dequantize``), once and for every file.

Nothing is believed before it has been checked: the header against the file (:mod:`hasten.models.gguf_header`), the
model that the metadata describe against the number of weights that the file holds, and what was loaded against both.
What transformers would silently leave out (factors of rotary positions) is refused.

Unpacking takes a minute or two for the 262,000 words of a Gemma: who opens a file more than once converts it and keeps
that (:mod:`hasten.models.interchange.conversions`).
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from hasten.models.gguf_header import GgufHeader, read_header
from hasten.models.reshape import open_model, prepared
from hasten.models.silence import silence_transformers
from hasten.records import InputError, MissingDependency

_BLOCK = re.compile(r"(?:^|\.)blk\.(\d+)\.")
# Their text heads need an encoder beside the decoder.
_SEQ2SEQ = ("t5",)
# The file's architecture -> transformers' name for it, where its loader renames it by itself
_RENAMED = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2"}
_TOKEN_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
_NAME = "model.gguf"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def load_gguf(path: Path) -> tuple[Any, dict[str, bytes]]:
    """The model with its text head, fp32 and in eval mode, and the tokenizer's files.

    Raises InputError for a file that is broken or hostile, of an architecture that transformers cannot map, or of
    which it would leave something out; MissingDependency without ``gguf`` or ``accelerate``.
    """
    model, tokenizer = _unpacked(path)
    return prepared(model).eval(), tokenizer


def convert_gguf(path: Path, folder: Path) -> None:
    """Write the same as an ordinary checkpoint into ``folder``. Raises as :func:`load_gguf`."""
    model, tokenizer = _unpacked(path)
    # The names of its own modules: transformers would turn the file's conversions round, too.
    model.save_pretrained(folder, save_original_format=False)
    for name, content in tokenizer.items():
        (folder / name).write_bytes(content)


def load_converted(folder: Path) -> tuple[Any, dict[str, bytes]]:
    """What :func:`load_gguf` gives, out of the folder that :func:`convert_gguf` wrote."""
    import torch
    import transformers

    silence_transformers()
    name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    model = open_model(getattr(transformers, name), folder, attention="sdpa", dtype=torch.float32)
    return model, {name: file.read_bytes() for name in _TOKENIZER_FILES if (file := folder / name).is_file()}


def _unpacked(path: Path) -> tuple[Any, dict[str, bytes]]:
    """As transformers has it, and the tokenizer's files."""
    header = read_header(path)
    _check_architecture(header, path)
    _check_positions(header, path)
    _check_sizes(header, path)
    _need_accelerate()
    with tempfile.TemporaryDirectory() as scratch:
        # Alone in a folder: configs beside the file are none of its business.
        (Path(scratch) / _NAME).symlink_to(path.resolve())
        try:
            return _model(header, path, Path(scratch)), _tokenizer(header, Path(scratch))
        except InputError:
            raise
        except Exception as error:  # whatever the metadata make transformers stumble over is the file's fault
            raise InputError(
                f"transformers cannot load {path}: {str(error).strip()[:400]}",
                expected="a GGUF file that llama.cpp's converter wrote for a model of its own family",
                remedy="load it with transformers alone to see more, or use the original checkpoint",
            ) from error


def known_architectures() -> list[str]:
    """The values of ``general.architecture`` that the installed transformers can map to one of its models."""
    from transformers.integrations.gguf import GGUF_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    names = {*GGUF_ARCHS, *GGUF_SUPPORTED_ARCHITECTURES} - {"general", "tokenizer"}
    back = {new: old for old, new in _RENAMED.items()}
    return sorted(back.get(name, name) for name in names)


def _check_architecture(header: GgufHeader, path: Path) -> None:
    known = known_architectures()
    if header.architecture not in known:
        raise InputError(
            f"{path} holds a model of the architecture {header.architecture[:80]!r}, which transformers cannot map",
            expected=f"one of {', '.join(known)}",
            remedy="use the original checkpoint",
        )


def _check_positions(header: GgufHeader, path: Path) -> None:
    scaling = header.of_model("rope.scaling.type")
    linear = header.of_model("rope.scale_linear")  # how older files say "linear"
    if scaling in (None, "none") and linear not in (None, 1.0):
        scaling = f"by {linear}"
    extra = [name for name in header.shapes if name.startswith(("rope_freqs.", "rope_factors_"))]
    if extra or (scaling not in (None, "none") and header.architecture != "gpt-oss"):
        raise InputError(
            f"{path} scales its rotary positions ({extra[0] if extra else scaling}), which transformers leaves out",
            expected="a GGUF file without scaled positions",
            remedy="use the original checkpoint, whose config.json says how positions are scaled",
        )


def _check_sizes(header: GgufHeader, path: Path) -> None:
    """Counts that would make transformers build a giant out of a small file."""
    blocks = {int(found[1]) for name in header.shapes if (found := _BLOCK.search(name))}
    count, width = header.of_model("block_count"), header.of_model("embedding_length")
    table = header.shapes.get("token_embd.weight", (0,))
    if not isinstance(count, int) or not 1 <= count <= len(blocks) or width != table[0]:
        raise InputError(
            f"{path} says {count} blocks and a width of {width}, and holds {len(blocks)} and {table[0]}",
            expected="metadata that describe the file's own tensors",
            remedy="download it again, from a source that you trust",
        )


def _need_accelerate() -> None:
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise MissingDependency("accelerate", extra="gguf") from error


def _model(header: GgufHeader, path: Path, folder: Path) -> Any:
    import torch
    import transformers

    silence_transformers()
    seq2seq = header.architecture in _SEQ2SEQ
    auto = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    config = transformers.AutoConfig.from_pretrained(folder, gguf_file=_NAME, local_files_only=True)
    with torch.device("meta"):
        _check_weights(auto.from_config(config), header, path)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that has no switch
        model, info = auto.from_pretrained(
            folder, config=config, gguf_file=_NAME, quantization_config=transformers.GgufConfig(dequantize=True),
            dtype=torch.float32, local_files_only=True, output_loading_info=True,
        )  # fmt: skip
    bad = sorted(str(key) for kind in ("missing_keys", "mismatched_keys", "unexpected_keys") for key in info[kind])
    if bad:
        raise InputError(
            f"{len(bad)} weights of {path} are missing, left over or of another shape, such as {bad[0]}",
            expected="every weight of the model, once", remedy="use the original checkpoint",
        )  # fmt: skip
    for entry, name in _TOKEN_IDS.items():
        token = header.metadata.get(f"tokenizer.ggml.{entry}")
        if token is not None:  # the config's own defaults are another model's
            setattr(model.config, name, token)
            setattr(model.generation_config, name, token)
    return model.float()


def _check_weights(described: Any, header: GgufHeader, path: Path) -> None:
    """As many numbers in the file as in the model; an output matrix may be tied there and stored here."""
    count = sum(weight.numel() for weight in described.parameters())
    head = described.get_output_embeddings()
    if header.weights not in (count, count + (0 if head is None else head.weight.numel())):
        raise InputError(
            f"{path} holds {header.weights} weights, and the model that it describes has {count}",
            expected="a file with all of its model's weights and no others",
            remedy="use the original checkpoint: part of the file would be left out, or part of the model made up",
        )


def _tokenizer(header: GgufHeader, folder: Path) -> dict[str, bytes]:
    """As the file describes it, whatever class transformers has for the family: that class adds nothing to it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=_NAME, local_files_only=True)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        _drop_made_up(Path(scratch), count=header.metadata.get("tokenizer.ggml.tokens"))
        return {name: file.read_bytes() for name in _TOKENIZER_FILES if (file := Path(scratch) / name).is_file()}


def _drop_made_up(folder: Path, *, count: Any) -> None:
    """Take out tokens behind the file's own ``count``: transformers' converter adds GPT-2's end of a text to whatever
    has none, and a model has no row for it."""
    path, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    extra = [token for token in content["added_tokens"] if isinstance(count, int) and token["id"] >= count]
    if not extra:
        return
    content["added_tokens"] = [token for token in content["added_tokens"] if token not in extra]
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    names = {token["content"] for token in extra}
    said = json.loads(settings.read_text(encoding="utf-8"))
    kept = {name: value for name, value in said.items() if not (isinstance(value, str) and value in names)}
    settings.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
