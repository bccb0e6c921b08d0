"""Weights and settings that do not fit each other: every one an InputError, none a model with random parts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hasten.models.load import load_checkpoint
from hasten.records import InputError, ModelRef
from hasten.tasks import get_task

TASK = "text-classification"


@pytest.fixture
def copy(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A BERT classifier to damage."""
    return Path(shutil.copytree(checkpoint("bert"), tmp_path / "copy"))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def as_sentence_model(folder: Path, modules: list[str], pooling: dict[str, object]) -> None:
    edit_config(folder, architectures=["BertModel"])
    kinds = [{"type": f"sentence_transformers.models.{name}"} for name in modules]
    (folder / "modules.json").write_text(json.dumps(kinds))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 48, "num_attention_heads": 4},
        {"num_hidden_layers": 6},
        {"vocab_size": 7},
        {"hidden_act": "no-such-function"},
        {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}},
        {"id2label": {"1": "a", "2": "b", "3": "c"}, "label2id": {"a": 1, "b": 2, "c": 3}},
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_its_weights(copy: Path, changes: dict[str, object]) -> None:
    edit_config(copy, **changes)
    with pytest.raises(InputError, match="to do:"):
        load_checkpoint(ModelRef(str(copy)), task=get_task(TASK))


def test_a_missing_layer_weight_is_named(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    name = next(k for k in weights if k.endswith("layer.2.output.dense.weight"))
    save_file({k: v for k, v in weights.items() if k != name}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        load_checkpoint(ModelRef(str(copy)), task=get_task(TASK))


def test_shards_load_together_or_not_at_all(copy: Path, checkpoint: Callable[[str], Path]) -> None:
    from transformers import AutoModelForSequenceClassification

    whole = AutoModelForSequenceClassification.from_pretrained(checkpoint("bert"))
    (copy / "model.safetensors").unlink()
    whole.save_pretrained(copy, max_shard_size="40KB")
    shards = sorted(copy.glob("model-*.safetensors"))
    assert len(shards) > 1
    found = load_checkpoint(ModelRef(str(copy)), task=get_task(TASK))
    assert torch.equal(found.model.classifier.weight, whole.classifier.weight)
    shards[-1].unlink()
    with pytest.raises(InputError):
        load_checkpoint(ModelRef(str(copy)), task=get_task(TASK))


def test_half_precision_weights_come_back_in_fp32(copy: Path) -> None:
    weights = {k: v.half() for k, v in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    model = load_checkpoint(ModelRef(str(copy)), task=get_task(TASK)).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training


@pytest.mark.parametrize("content", ["{", "[]", '"x"'])
def test_tokenizer_settings_that_are_none(copy: Path, content: str) -> None:
    (copy / "tokenizer_config.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer_config\.json"):
        load_checkpoint(ModelRef(str(copy)), task=get_task(TASK))


def test_the_tokenizers_limit_counts(copy: Path) -> None:
    for limit, wanted in ((20, 20), (10**30, 66), (None, 66)):
        settings = json.loads((copy / "tokenizer_config.json").read_text()) | {"model_max_length": limit}
        (copy / "tokenizer_config.json").write_text(json.dumps(settings))
        assert load_checkpoint(ModelRef(str(copy)), task=get_task(TASK)).max_length == wanted


@pytest.mark.parametrize(
    "changes",
    [
        {"do_lower_case": False},
        {"strip_accents": False},
        {"tokenize_chinese_chars": False},
        {"truncation_side": "left"},
    ],
    ids=str,
)
def test_tokens_are_those_of_transformers(copy: Path, changes: dict[str, object]) -> None:
    """The settings file overrules tokenizer.json there, so it must here."""
    from transformers import AutoTokenizer, BertTokenizer

    from hasten.tasks.tokenize import Tokenizer

    for path in copy.glob("token*"):
        path.unlink()
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "hello",
        "Hello",
        "cafe",
        "caf\u00e9",
        "\u4e16",
        "\u4e16\u754c",
        "x",
    ]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(copy)
    settings = json.loads((copy / "tokenizer_config.json").read_text()) | {"model_max_length": 6, **changes}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    found = load_checkpoint(ModelRef(str(copy)), task=get_task(TASK))
    ours = Tokenizer(found.tokenizer_json, max_length=found.max_length)
    theirs = AutoTokenizer.from_pretrained(copy)
    for text in ("Hello caf\u00e9", "\u4e16\u754c", "hello x cafe Hello caf\u00e9 x x hello"):
        assert ours.encode(text).arrays["input_ids"].tolist() == theirs(text, truncation=True)["input_ids"], text


def test_a_vocabulary_alone_is_converted(copy: Path) -> None:
    from hasten.tasks.tokenize import Tokenizer

    for path in copy.glob("token*"):
        path.unlink()
    (copy / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "wor", "##ld"]))
    found = load_checkpoint(ModelRef(str(copy)), task=get_task(TASK))
    assert Tokenizer(found.tokenizer_json, max_length=16).encode("Hello world").arrays["input_ids"].tolist() == [
        2,
        5,
        6,
        7,
        3,
    ]


def test_pooling_as_the_model_was_trained(copy: Path) -> None:
    as_sentence_model(copy, ["Transformer", "Pooling"], {"pooling_mode_mean_tokens": True})
    found = load_checkpoint(ModelRef(str(copy)), task=get_task("feature-extraction"))
    assert (found.pooling, found.normalize) == ("mean", False)
    (copy / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    assert load_checkpoint(ModelRef(str(copy)), task=get_task("feature-extraction")).pooling == "cls"


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, "max_tokens"),
        (["Transformer", "Pooling"], {"pooling_mode": "lasttoken"}, "lasttoken"),
        (
            ["Transformer", "Pooling"],
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            "mean, cls",
        ),
        (["Transformer", "Pooling", "Dense"], {"pooling_mode_mean_tokens": True}, "Dense"),
    ],
)
def test_a_sentence_model_that_pools_otherwise_is_refused(
    copy: Path, modules: list[str], pooling: dict[str, object], message: str
) -> None:
    as_sentence_model(copy, modules, pooling)
    with pytest.raises(InputError, match=message):
        load_checkpoint(ModelRef(str(copy)), task=get_task("feature-extraction"))


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json"])
def test_sentence_settings_that_are_no_json(copy: Path, name: str) -> None:
    as_sentence_model(copy, ["Transformer", "Pooling"], {"pooling_mode_mean_tokens": True})
    (copy / name).write_text("{")
    with pytest.raises(InputError, match="JSON"):
        load_checkpoint(ModelRef(str(copy)), task=get_task("feature-extraction"))
