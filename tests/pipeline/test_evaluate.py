"""Likelihoods as a harness asks for them, against plain sums over logits; the harness itself, where it is there."""

from __future__ import annotations

import json
import os
import shutil
import sys
import types
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles_for_tests import language_bundle
from interchange_models import saved, tiny

import hasten
from hasten.models.load import load_checkpoint
from hasten.models.writing import writing_of
from hasten.pipeline import evaluate as own
from hasten.pipeline.answering import answers_of
from hasten.pipeline.continuing import of_session
from hasten.pipeline.likelihood import Reader, Words, rolling_windows
from hasten.records import InputError, MissingDependency, ModelRef, Workload
from hasten.runtimes.generation import Generation
from hasten.tasks import get_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny("llama"), tmp_path_factory.mktemp("model"))


def reader_of(source: Path, **changes: Any) -> Any:
    given = {"max_length": None, "batch": 3, "threads": 1, "cores": (0,), **changes}
    return own.opened(ModelRef(str(source)), **given)


def logits_of(folder: Path) -> Any:
    model = load_checkpoint(ModelRef(str(folder)), task=get_task("language-modeling")).model

    def run(ids: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = model(input_ids=torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)
        return found

    return run


PAIRS = [([1, 2, 3], [4, 5]), ([0], [7]), ([9, 8, 7, 6, 5, 4], [3, 2, 1]), ([4], [5, 6, 7, 8, 9, 10]), ([30, 2], [27])]


@pytest.mark.parametrize("kind", ["checkpoint", "bundle"])
def test_sums_are_those_of_the_logits(kind: str, folder: Path, tmp_path: Path) -> None:
    run = logits_of(folder)
    source = folder if kind == "checkpoint" else language_bundle(folder, tmp_path / "bundle")
    with reader_of(source) as reader:
        found = reader.likelihoods(PAIRS)
    for (context, continuation), (said, likeliest) in zip(PAIRS, found, strict=True):
        whole = run([*context, *continuation])
        places = range(len(context) - 1, len(context) + len(continuation) - 1)
        assert said == pytest.approx(
            sum(float(whole[p, t]) for p, t in zip(places, continuation, strict=True)), abs=1e-3
        )
        assert likeliest == all(int(whole[p].argmax()) == t for p, t in zip(places, continuation, strict=True))


def test_the_likeliest_continuation_is_called_so(folder: Path) -> None:
    run, ids = logits_of(folder), [5, 6, 7]
    for _ in range(3):
        ids.append(int(run(ids)[-1].argmax()))
    with reader_of(folder) as reader:
        assert reader.likelihoods([(ids[:3], ids[3:])])[0][1]
        assert not reader.likelihoods([(ids[:3], [*ids[3:-1], (ids[-1] + 1) % 60])])[0][1]


def test_long_contexts_lose_their_front_and_nothing_else(folder: Path) -> None:
    long = [n % 30 for n in range(50)]
    with reader_of(folder, max_length=16) as reader:
        assert reader.likelihoods([(long, [3, 4])]) == reader.likelihoods([(long[-14:], [3, 4])])
        with pytest.raises(InputError, match="continuation of 16 tokens"):
            reader.likelihoods([([1], long[:16])])
    with pytest.raises(InputError, match="--max-length 67"), reader_of(folder, max_length=67):
        pass


def test_every_token_of_a_long_text_counts_once() -> None:
    for count in range(1, 25):
        tokens = list(range(100, 100 + count))
        windows = rolling_windows(tokens, first=0, most=7)
        assert [t for _, part in windows for t in part] == tokens
        assert windows[0][0] == [0]
        assert all(len(before) + len(part) <= 8 for before, part in windows)
        assert all(part[0] == 100 or before[-1] == part[0] - 1 for before, part in windows)


def test_windows_are_the_harness_s_own() -> None:
    utils = pytest.importorskip("lm_eval.utils", reason="no lm-eval")
    for count in (1, 6, 7, 8, 20):
        tokens = list(range(100, 100 + count))
        theirs = utils.get_rolling_token_windows(tokens, prefix_token=0, max_seq_len=7, context_len=1)
        pairs = [utils.make_disjoint_window(pair) for pair in theirs]
        assert [(list(a), list(b)) for a, b in rolling_windows(tokens, first=0, most=7)] == pairs


def test_writing_goes_on_likeliest_token_by_token(folder: Path) -> None:
    run = logits_of(folder)
    with reader_of(folder) as reader:
        ids = reader.words.encode("the cat")
        expected: list[int] = []
        while len(expected) < 6 and (following := int(run([*ids, *expected])[-1].argmax())) != reader.words.last:
            expected.append(following)
        text = reader.words.decode(expected)
        assert reader.written("the cat", until=[], tokens=6) == text
        assert reader.write is not None
        with pytest.raises(InputError, match="66 new tokens"):
            reader.written("the cat", until=[], tokens=66)


class Script:
    """A model that writes what it is told to."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.asked = 0

    def __call__(self, ids: Sequence[int], tokens: int, last: int | None) -> Any:
        del ids, last
        for token in [1 + ord(c) - ord("a") for c in self.text][:tokens]:
            self.asked += 1
            yield token


def test_writing_ends_at_the_first_stop_and_asks_for_no_more(folder: Path) -> None:
    script = Script("abcdefgh")
    files = {path.name: path.read_bytes() for path in folder.glob("token*")}
    reader = Reader(Words(files), None, script, 60)
    assert reader.written("x", until=["ef", "d"], tokens=20) == "abc"
    assert script.asked == 4
    with pytest.raises(InputError, match="cannot give likelihoods"):
        reader.likelihoods(PAIRS)
    with pytest.raises(InputError, match="cannot write"):
        Reader(Words(files), lambda _: np.zeros((1, 1, 2)), None, 60).written("x", until=[], tokens=1)


def test_an_empty_stop_ends_nothing(folder: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.glob("token*")}
    reader = Reader(Words(files), None, Script("abcdefgh"), 60)
    assert reader.written("x", until=["", "d"], tokens=20) == "abc"
    assert reader.written("x", until=[""], tokens=20) == "abcdefgh"


def test_rolling_begins_with_one_first_token(folder: Path) -> None:
    """Of a tokenizer that puts that token in front by itself, too."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]}},
    }
    files = {path.name: path.read_bytes() for path in folder.glob("token*")}
    words = Words({**files, "tokenizer.json": json.dumps(content).encode()})
    assert words.encode("ab") == [0, 1, 2]
    seen: list[Any] = []

    def run(arrays: dict[str, np.ndarray]) -> np.ndarray:
        seen.append(arrays["input_ids"].tolist())
        return np.full((*arrays["input_ids"].shape, 2), -1.0)

    assert Reader(words, run, None, 60).rolling("ab") == -2.0
    assert seen == [[[0, 1, 2]]]


def test_threads_and_cores_are_as_asked_and_as_before(folder: Path) -> None:
    before = torch.get_num_threads()
    with reader_of(folder, threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no cores to choose on this system")
@pytest.mark.usefixtures("harness")
def test_cores_are_given_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    one = min(before)
    seen = []

    def fails(*_: Any, **__: Any) -> Any:
        seen.append(os.sched_getaffinity(0))
        raise InputError("no model", expected="one", remedy="give one")

    monkeypatch.setattr(own, "opened", fails)
    with pytest.raises(InputError, match="no model"):
        hasten.evaluate(folder, tasks=["story"], cores=str(one))
    assert seen == [{one}]
    assert os.sched_getaffinity(0) == before


def test_a_session_that_writes_gets_one_prompt_at_a_time() -> None:
    asked = []

    class Session:
        def generate(self, arrays: Any, generation: Any) -> Any:
            asked.append((arrays["input_ids"].tolist(), generation))
            yield from (np.array([number]) for number in (4, 5, 3, 6))

    usual = Generation(new_tokens=1, ends=(3,), never=(9,), never_first=(8,))
    assert list(of_session(Session(), usual)([1, 2], 7, 0)) == [4, 5]  # up to an end of its own
    assert list(of_session(Session(), usual)([1, 2], 7, 5)) == [4]
    assert list(of_session(Session(), replace(usual, ends=()))([1, 2], 7, None)) == [4, 5, 3, 6]
    assert [ids for ids, _ in asked] == [[[1, 2]]] * 3
    assert asked[0][1] == Generation(new_tokens=7, ends=(0, 3), never=(9,), never_first=(8,))


@pytest.mark.parametrize("kind", ["checkpoint", "bundle"])
def test_what_must_not_be_written_is_not(kind: str, folder: Path, tmp_path: Path) -> None:
    """The likeliest tokens are banned one after the other; what is written then is what is left."""
    model = Path(shutil.copytree(folder, tmp_path / "model"))
    run = logits_of(folder)
    with reader_of(folder) as reader:
        ids = reader.words.encode("the cat")
    ranked = run(ids)[-1].argsort(descending=True).tolist()
    never, never_first = [t for t in ranked[:2] if t], [t for t in ranked[2:4] if t]
    facts = json.loads((model / "generation_config.json").read_text())
    facts |= {"suppress_tokens": never, "begin_suppress_tokens": never_first, "eos_token_id": 0}
    (model / "generation_config.json").write_text(json.dumps(facts))
    expected: list[int] = []
    while len(expected) < 5:
        banned = never if expected else [*never, *never_first]
        logits = run([*ids, *expected])[-1].clone()
        logits[banned] = -torch.inf
        if int(logits.argmax()) == 0:
            break
        expected.append(int(logits.argmax()))
    assert expected
    source = model
    if kind == "bundle":
        made = load_checkpoint(ModelRef(str(model)), task=get_task("text-generation")).model
        answers = answers_of(Workload(new_tokens=4), writing_of(made), None, count=len)
        source = language_bundle(model, tmp_path / "bundle", task="text-generation", answers=answers)
    with reader_of(source) as reader:
        assert reader.write is not None
        assert list(reader.write(ids, 5, reader.words.last)) == expected


def test_special_tokens_are_not_doubled(folder: Path) -> None:
    words = Words({path.name: path.read_bytes() for path in folder.glob("token*")})
    assert (words.first, words.last) == (0, 0)
    assert words.encode("<|end|>a") == [0, 1]
    with pytest.raises(InputError, match="begins or ends"):
        Words({"tokenizer.json": (folder / "tokenizer.json").read_bytes()})


# ------------------------------------------------------------------ a harness in miniature


class Asked:
    def __init__(self, *args: Any) -> None:
        self.args = args


class MiniatureLM:
    """As much of the harness's base class as it leaves to its models."""

    def loglikelihood(self, requests: Sequence[Asked]) -> Any:
        made = []
        for request in requests:
            context, continuation = request.args
            before = self.tok_encode(context)  # type: ignore[attr-defined]
            made.append((request.args, before, self.tok_encode(context + continuation)[len(before) :]))  # type: ignore[attr-defined]
        return self._loglikelihood_tokens(made, disable_tqdm=True)  # type: ignore[attr-defined]


WRITE = Asked("the", {"until": "q", "max_gen_toks": 3})


class MiniatureTasks:
    def __init__(self, include_path: str | None = None) -> None:
        del include_path
        self.all_tasks = ["choices", "story", "lost"]


def miniature(*, model: Any, tasks: list[str], limit: int | None, **settings: Any) -> Any:
    del limit, settings
    print("chatter on stdout")
    if tasks == ["lost"]:
        raise FileNotFoundError("no such data set")
    choices = [Asked("the cat", " the"), Asked("the cat", "b")]
    found = {
        "choices": {"alias": "choices", "acc,none": float(np.argmax([s for s, _ in model.loglikelihood(choices)])),
                    "acc_stderr,none": "N/A", "sample_len": 2},
        "story": {"words,none": model.loglikelihood_rolling([Asked("the cat the dog")])[0],
                  "length,none": float(len(model.generate_until([WRITE])[0]))},
    }  # fmt: skip
    return {"results": {name: found[name] for name in tasks}, "n-samples": {name: {"effective": 2} for name in tasks}}


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: dict[str, dict[str, Any]] = {
        "lm_eval": {},
        "lm_eval.api": {},
        "lm_eval.api.model": {"TemplateLM": MiniatureLM},
        "lm_eval.tasks": {"TaskManager": MiniatureTasks},
        "lm_eval.evaluator": {"simple_evaluate": miniature},
    }
    for name, content in parts.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(own, "version", lambda name: f"{name} 0")


@pytest.mark.usefixtures("harness")
def test_the_harness_s_figures_are_given_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = hasten.evaluate(folder, tasks=["choices", "story"], out=tmp_path / "scores.json")
    run = logits_of(folder)
    with reader_of(folder) as reader:
        ids = [reader.words.first, *reader.words.encode("the cat the dog")]
        said = [float(run(reader.words.encode(f"the cat{c}"))[-2, reader.words.encode(f"the cat{c}")[-1]])
                for c in (" the", "b")]  # fmt: skip
    whole = run(ids)
    expected = sum(float(whole[place, token]) for place, token in enumerate(ids[1:]))
    assert result.tasks["story"]["words,none"] == pytest.approx(expected, abs=1e-3)
    assert result.tasks["choices"] == {"acc,none": float(np.argmax(said))}
    assert result.rows == {"choices": 2, "story": 2}
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads(json.dumps(result.to_dict()))
    assert capsys.readouterr().out == ""  # what the harness prints is not among the results
    from rich.console import Console

    own.show(result, console=Console(width=100))
    assert "words" in capsys.readouterr().out


@pytest.mark.usefixtures("harness")
def test_what_cannot_be_asked_gets_a_sentence(folder: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tasks": ["choice"]}, "such as choices"), ({"tasks": []}, "no task"), ({"tasks": ["lost"]}, "no such data"),
        ({"tasks": ["story"], "batch": 0}, "--batch 0"), ({"tasks": ["story"], "out": tmp_path}, "is a folder"),
        ({"tasks": ["story"], "include_path": tmp_path / "none"}, "no folder"),
        ({"tasks": ["story"], "out": "/dev/null"}, "is no file"),
        ({"tasks": ["story"], "out": tmp_path / "file" / "scores.json"}, "cannot be written"),
    ]  # fmt: skip
    (tmp_path / "file").touch()
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            hasten.evaluate(folder, **options)
    with reader_of(folder) as reader, pytest.raises(InputError, match="draws its answers"):
        own._answer(reader, "the", {"do_sample": True, "temperature": 0.7})


def test_without_the_harness_the_remedy_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(MissingDependency, match=r"hasten\[lm-eval\]"):
        hasten.evaluate(folder, tasks=["piqa"])


TASK = """
task: tiny_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{rows}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: right
metric_list: [{{metric: acc}}]
"""


@pytest.mark.slow
def test_the_real_harness_counts_what_the_logits_say(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="no lm-eval: pip install 'hasten[lm-eval]'")
    rows = [
        {"question": q, "choices": ["ab", "the", "cd"], "right": n % 3}
        for n, q in enumerate(("the cat", "dog", "a", "b"))
    ]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.yaml").write_text(TASK.format(rows=tmp_path / "rows.json"))
    result = hasten.evaluate(folder, tasks=["tiny_choices"], include_path=tmp_path / "tasks")
    run, right = logits_of(folder), 0
    with reader_of(folder) as reader:
        for row in rows:
            before = reader.words.encode(row["question"])
            said = []
            for choice in row["choices"]:
                ids = reader.words.encode(f"{row['question']} {choice}")
                whole = run(ids)
                said.append(sum(float(whole[p - 1, ids[p]]) for p in range(len(before), len(ids))))
            right += int(np.argmax(said) == row["right"])
    assert result.tasks["tiny_choices"]["acc,none"] == pytest.approx(right / 4)
    assert result.rows["tiny_choices"] == 4
