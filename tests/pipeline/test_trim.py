"""``hasten trim-vocabulary``: a checkpoint in, a smaller one out that says the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tiny_models import language_config, save_classifier, shaken, tiny_config
from vocabularies import KINDS, opened, sentences, trained

from hasten.cli import cli
from hasten.models.load import load_checkpoint
from hasten.models.reshape import is_ours, open_model, save_model
from hasten.passes import run_pass
from hasten.passes.calibration import Calibration
from hasten.passes.random_units import RandomUnitsConfig
from hasten.pipeline import trim
from hasten.pipeline.trim import TrimmedCheckpoint, trim_vocabulary
from hasten.records import InputError, ModelRef, Rejected
from hasten.tasks import get_task
from hasten.tasks.wrappers import NextTokenWrapper

TEXTS = sentences(count=12, seed=1)
TEMPLATE = "{% for m in messages %}<s>[{{ m.role }}] {{ m.content }}</s>{% endfor %}"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied LLaMA with a byte-level vocabulary, rows to spare and a chat template."""
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("decoder")
    own = opened(trained("byte-level"))
    torch.manual_seed(0)
    config = language_config(
        "llama", vocab_size=own.get_vocab_size() + 11, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    shaken(LlamaForCausalLM(config)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    (folder / "merges.txt").write_text("old")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "texts.txt"
    path.write_text("\n\n".join(TEXTS), encoding="utf-8")
    return path


def both(before: Path, after: Path) -> tuple[Any, Any, Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in (before, after)]
    return (*models, *(AutoTokenizer.from_pretrained(folder) for folder in (before, after)))


def test_a_plain_checkpoint_that_says_the_same(decoder: Path, corpus: Path, tmp_path: Path) -> None:
    found = trim_vocabulary(decoder, corpus=corpus, out=tmp_path / "small")
    assert isinstance(found, TrimmedCheckpoint)
    assert found.tokens_after < found.tokens_before
    old, new, old_words, new_words = both(decoder, tmp_path / "small")
    assert new.config.vocab_size == len(new_words) == found.tokens_after
    assert sum(p.numel() for p in new.parameters()) == found.parameters_after < found.parameters_before
    names = new_words.get_vocab()
    kept = torch.tensor([old_words.get_vocab()[word] for word in sorted(names, key=lambda w: names[w])])
    for text in TEXTS:
        ids, small = (words(text, return_tensors="pt")["input_ids"] for words in (old_words, new_words))
        assert torch.equal(kept[small], ids)
        with torch.inference_mode():
            assert torch.allclose(new(small).logits, old(ids).logits[..., kept], atol=1e-5)
    for text in ("ein ganz anderer Text, 日本語 \U0001f600\r\n\t<s> tab", *sentences(count=20, seed=7)):
        assert new_words.decode(new_words(text, add_special_tokens=False)["input_ids"]) == text
    assert (new.config.pad_token_id, new.config.bos_token_id, new.config.eos_token_id) == tuple(
        names[word] for word in ("<pad>", "<s>", "</s>")
    )
    assert new.config.dtype == torch.bfloat16 or new.config.dtype == torch.float32


def test_what_lies_beside_and_what_is_stale(decoder: Path, corpus: Path, tmp_path: Path) -> None:
    trim_vocabulary(decoder, corpus=corpus, out=tmp_path / "small")
    held = {path.name for path in (tmp_path / "small").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= held
    assert not held & {"merges.txt", "vocab.json"}
    from safetensors.torch import load_file

    assert {w.dtype for w in load_file(tmp_path / "small" / "model.safetensors").values()} == {torch.bfloat16}
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_words_of_the_chat_template_stay(decoder: Path, corpus: Path, tmp_path: Path) -> None:
    trim_vocabulary(decoder, corpus=corpus, out=tmp_path / "small")
    _, _, old, new = both(decoder, tmp_path / "small")
    talk = [{"role": "user", "content": TEXTS[0]}]
    texts = [words.apply_chat_template(talk, tokenize=False) for words in (old, new)]
    assert texts[0] == texts[1] == f"<s>[user] {TEXTS[0]}</s>"
    assert old.tokenize(texts[0]) == new.tokenize(texts[1])


ROWS: dict[str, list[dict[str, Any]]] = {
    "prompts and completions": [{"prompt": TEXTS[n], "completion": TEXTS[n + 1]} for n in (0, 2)],
    "instructions": [{"instruction": TEXTS[0], "input": TEXTS[1], "output": TEXTS[2], "text": TEXTS[3]}],
    "messages": [
        {"messages": [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": TEXTS[1]}], "id": 7},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": TEXTS[2]}]},
                      {"role": "assistant", "content": TEXTS[3]}]},
    ],
    "conversations": [{"conversations": [{"from": "human", "value": TEXTS[n]}, {"from": "gpt", "value": TEXTS[n + 1]}]}
                      for n in (0, 2)],
    "conversations to go on with": [
        {"prompt": [{"role": "user", "content": TEXTS[n]}],
         "completion": [{"role": "assistant", "content": TEXTS[n + 1]}]}
        for n in (0, 2)
    ],
}  # fmt: skip


@pytest.mark.parametrize("form", ROWS)
def test_all_that_is_said_in_rows_stays(form: str, decoder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[form]))
    found = trim_vocabulary(decoder, corpus=tmp_path / "rows.jsonl", out=tmp_path / "small")
    assert not found.notes
    assert found.tokens_after < found.tokens_before
    _, _, old, new = both(decoder, tmp_path / "small")
    talk = [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": TEXTS[1]}]
    for text in (*TEXTS[:4], old.apply_chat_template(talk, tokenize=False)):
        assert old.tokenize(text) == new.tokenize(text)


def test_a_column_that_is_named_is_read_alone(decoder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": TEXTS[0], "completion": text} for text in TEXTS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone = trim_vocabulary(decoder, corpus=tmp_path / "rows.jsonl", out=tmp_path / "a", text_column="prompt")
    whole = trim_vocabulary(decoder, corpus=tmp_path / "rows.jsonl", out=tmp_path / "b")
    assert alone.tokens_after < whole.tokens_after
    assert (alone.texts, whole.texts) == (1, 2 * len(TEXTS))


def test_the_task_opens_it(decoder: Path, corpus: Path, tmp_path: Path) -> None:
    trim_vocabulary(decoder, corpus=corpus, out=tmp_path / "small")
    task = get_task("language-modeling")
    found = load_checkpoint(ModelRef(str(tmp_path / "small")), task=task)
    assert found.license == "mit"
    assert found.config.vocab_size < 400


@pytest.mark.parametrize(("kind", "family"), [("wordpiece", "bert"), ("unigram", "xlm-roberta")])
def test_classifiers_give_the_same_answers(kind: str, family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

    own = opened(trained(kind))
    names = {"pad_token": "<pad>", "unk_token": "<unk>"} if kind == "unigram" else {"pad_token": "[PAD]"}
    torch.manual_seed(0)
    pad = own.token_to_id(names["pad_token"])
    config = tiny_config(family)
    config.vocab_size, config.pad_token_id, config.max_position_embeddings = own.get_vocab_size(), pad, 200
    before = tmp_path / "before"
    shaken(AutoModelForSequenceClassification.from_config(config)).save_pretrained(before)
    PreTrainedTokenizerFast(tokenizer_object=own, **names).save_pretrained(before)
    table = tmp_path / "rows.csv"
    table.write_text("text,other,label\n" + "".join(f'"{t}","{TEXTS[0]}",no\n' for t in TEXTS), encoding="utf-8")
    trim_vocabulary(before, corpus=[table], out=tmp_path / "after", text_column="text", text_pair_column="other")
    answers = []
    for folder in (before, tmp_path / "after"):
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        words = AutoTokenizer.from_pretrained(folder)
        with torch.inference_mode():
            answers.append([model(**words(text, TEXTS[0], return_tensors="pt")).logits for text in TEXTS])
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*answers, strict=True))
    assert model.config.vocab_size < config.vocab_size


def class_of_its_own(kind: str) -> Any:
    """Tokenizers that transformers builds anew from the words of a tokenizer.json, by rules of their own."""
    import transformers as t

    model = trained(kind)["model"]
    merges = [tuple(merge) for merge in model.get("merges", ())]
    if kind == "byte-level":
        return t.GPT2Tokenizer(vocab=model["vocab"], merges=merges)
    if kind == "byte-fallback":
        return t.LlamaTokenizer(vocab=model["vocab"], merges=merges)
    if kind == "wordpiece":
        return t.BertTokenizer(vocab=model["vocab"])
    return t.XLMRobertaTokenizer(vocab=[tuple(piece) for piece in model["vocab"]])


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_of_classes_of_their_own(kind: str, corpus: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    words = class_of_its_own(kind)
    before, after = tmp_path / "before", tmp_path / "after"
    LlamaForCausalLM(language_config("llama", vocab_size=len(words))).save_pretrained(before)
    words.save_pretrained(before)
    trim_vocabulary(before, corpus=corpus, out=after)
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (before, after))
    assert type(old) is type(new) is type(words)
    assert len(new) < len(old)
    assert new.all_special_tokens == old.all_special_tokens
    for text in (*TEXTS, TEXTS[0] + "  " + TEXTS[1]):
        ids = new(text)["input_ids"]
        assert new.convert_ids_to_tokens(ids) == old.convert_ids_to_tokens(old(text)["input_ids"])
        assert new.decode(ids) == old.decode(old(text)["input_ids"])


def test_folders_that_only_hasten_opens(decoder: Path, corpus: Path, tmp_path: Path) -> None:
    """A model that was cut before: its shapes are in its weights."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    words = AutoTokenizer.from_pretrained(decoder)
    whole = NextTokenWrapper(LlamaForCausalLM.from_pretrained(decoder, dtype=torch.float32)).eval()
    ids = [words(text, return_tensors="np")["input_ids"] for text in TEXTS]
    rows = Calibration([{"input_ids": own, "attention_mask": own * 0 + 1} for own in ids])
    cut = run_pass(whole, RandomUnitsConfig(keep=0.5, round_to=8), rows)
    save_model(cut.hf, tmp_path / "before")
    words.save_pretrained(tmp_path / "before")
    assert is_ours(tmp_path / "before")
    trim_vocabulary(tmp_path / "before", corpus=corpus, out=tmp_path / "after")
    made = open_model(LlamaForCausalLM, tmp_path / "after", attention="sdpa", dtype=torch.float32)
    small = AutoTokenizer.from_pretrained(tmp_path / "after")
    kept = torch.tensor([words.get_vocab()[word] for word in sorted(small.get_vocab(), key=small.get_vocab().get)])
    for text in TEXTS[:3]:
        with torch.inference_mode():
            found = made(small(text, return_tensors="pt")["input_ids"]).logits
            wanted = cut.hf(words(text, return_tensors="pt")["input_ids"]).logits[..., kept]
        assert torch.allclose(found, wanted, atol=1e-5)


def test_the_verb(decoder: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    arguments = ["trim-vocabulary", str(decoder), "--corpus", str(corpus), "--out", str(out)]
    done = CliRunner().invoke(cli, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["path"] == str(out)
    assert told["tokens_after"] < told["tokens_before"]
    again = CliRunner().invoke(cli, arguments)
    assert isinstance(again.exception, InputError)
    assert "exists" in str(again.exception)


def test_whole_words_are_refused_and_nothing_is_left(corpus: Path, tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "bert")
    with pytest.raises(Rejected, match="whole words"):
        trim_vocabulary(folder, corpus=corpus, out=tmp_path / "small")
    arguments = ["trim-vocabulary", str(folder), "--corpus", str(corpus), "--out", str(tmp_path / "small")]
    refused = CliRunner().invoke(cli, arguments).exception
    assert isinstance(refused, InputError)
    assert "whole words" in str(refused)
    assert "to do: give hasten optimize the checkpoint as it is" in str(refused)
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]


def test_a_corpus_without_text_is_refused(decoder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n\n")
    with pytest.raises(InputError, match="empty"):
        trim_vocabulary(decoder, corpus=empty, out=tmp_path / "small")


def test_old_ids_are_nowhere(decoder: Path, corpus: Path, tmp_path: Path) -> None:
    """transformers still reads added_tokens.json, and any program may read the other files of a vocabulary."""
    from transformers import AutoTokenizer

    before = Path(shutil.copytree(decoder, tmp_path / "before"))
    old = AutoTokenizer.from_pretrained(before).get_vocab()
    (before / "added_tokens.json").write_text(json.dumps({"<tool>": old["<tool>"]}))
    stale = ("spm.model", "tekken.json", "source.spm", "target.spm", "any.model", "rust_model.ot", "m.xml", "m.tflite")
    for name in (*stale, "kept.txt"):
        (before / name).write_text("old")
    (before / "sub").mkdir()
    (before / "sub" / "tokenizer.json").write_text("{}")
    trim_vocabulary(before, corpus=corpus, out=tmp_path / "small")
    held = {path.name for path in (tmp_path / "small").rglob("*")}
    assert "kept.txt" in held
    assert not held & {*stale, "added_tokens.json"}
    assert len(list((tmp_path / "small").rglob("tokenizer.json"))) == 1
    new = AutoTokenizer.from_pretrained(tmp_path / "small")
    content = json.loads((tmp_path / "small" / "tokenizer.json").read_text())
    assert {t["content"]: t["id"] for t in content["added_tokens"]}["<tool>"] == new.get_vocab()["<tool>"] < len(new)


def test_added_tokens_are_held_against_their_rows() -> None:
    from tokenizers import Tokenizer

    class Opened:
        backend_tokenizer = Tokenizer.from_str(json.dumps(trained("byte-level")))

    content = json.loads(Opened.backend_tokenizer.to_str())
    trim._check_added(content, Opened(), range(2000))
    with pytest.raises(Rejected, match="gives '<pad>' the id 0, not 1"):
        trim._check_added(content, Opened(), [1, 0, *range(2, 2000)])


def test_a_quantization_of_nothing_is_none(decoder: Path, corpus: Path, tmp_path: Path) -> None:
    before = Path(shutil.copytree(decoder, tmp_path / "before"))
    edit(before, quantization_config=None)
    done = trim_vocabulary(before, corpus=corpus, out=tmp_path / "small")
    assert done.tokens_after < done.tokens_before
    edit(before, quantization_config={"quant_method": "awq"})
    with pytest.raises(InputError, match="quantized weights"):
        trim_vocabulary(before, corpus=corpus, out=tmp_path / "other")


def test_what_is_no_model_or_not_all_of_one(decoder: Path, corpus: Path, tmp_path: Path) -> None:
    before = Path(shutil.copytree(decoder, tmp_path / "before"))
    edit(before, architectures=["pipeline"])
    with pytest.raises(InputError, match="saved as pipeline"):
        trim_vocabulary(before, corpus=corpus, out=tmp_path / "small")
    edit(before, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(InputError, match=r"1 weights.*score\.weight"):  # a head that would be random
        trim_vocabulary(before, corpus=corpus, out=tmp_path / "small")


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
