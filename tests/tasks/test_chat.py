"""Chat templates: what they may use, what they may not, the day, and conversations that are too long."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from tiny_models import save_tokenizer

from hasten.records import InputError, MissingDependency, Workload
from hasten.tasks import get_task
from hasten.tasks.chat import DAY, ChatTemplate, with_day
from hasten.tasks.processor import open_processor
from hasten.tasks.task import reading
from hasten.tasks.tokenize import Tokenizer


def rendered(template: str, **files: bytes) -> str:
    return ChatTemplate({"chat_template.jinja": template.encode(), **files}).render("h\u00e9")


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("{{ tools is none }}{{ documents is none }}", "TrueTrue"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "h\u00e9!"),
        ("{{ messages[0].content|tojson }}", '"h\u00e9"'),
        ("{{ messages[0].content|tojson(ensure_ascii=True) }}", '"h\\u00e9"'),
        ("{{ {'b': 1, 'a': 2}|tojson(sort_keys=true, indent=1) }}", '{\n "a": 2,\n "b": 1\n}'),
        (
            "{% set n = namespace(a=1) %}{% set n.a = 2 %}{{ n.a }}{{ dict(b=3).b }}{{ dict.fromkeys('x')|length }}",
            "231",
        ),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
    ],
)
def test_templates_may_use_what_transformers_offers(template: str, wanted: str) -> None:
    assert rendered(template) == wanted


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}", "{% set n = namespace(__init__=1) %}",
        "{% set n = namespace() %}{% set n._a = 1 %}",
        "{{ dict.__class__.__base__.__subclasses__() }}", "{{ dict.mro() }}", "{{ messages.append(1) }}", "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}", "{{ raise_exception('no') }}", "{{ strftime_now.__self__.year }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% generation %}",
    ],
)  # fmt: skip
def test_templates_that_reach_out_or_fail_are_the_users_to_mend(template: str) -> None:
    with pytest.raises(InputError, match="chat template does not work"):
        rendered(template)


def test_the_day_of_a_bundle_stays() -> None:
    template = "{{ strftime_now('%d %b %Y') }}"
    before = datetime.now(UTC).date()
    kept = with_day({"chat_template.jinja": template.encode()})
    assert before <= date.fromisoformat(kept[DAY].decode()) <= datetime.now(UTC).date()
    assert rendered(template, **{DAY: b"2024-01-31"}) == "31 Jan 2024"
    assert with_day({**kept, DAY: b"2024-01-31"})[DAY] == b"2024-01-31"
    assert DAY not in with_day({"chat_template.jinja": b"{{ messages }}"})
    assert DAY in with_day({"tokenizer_config.json": json.dumps({"chat_template": template}).encode()})
    with pytest.raises(InputError, match=DAY):
        rendered(template, **{DAY: b"soon"})


def test_an_old_sandbox_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.tasks.chat.version", lambda _: "3.1.5")
    with pytest.raises(MissingDependency, match=r"3\.1\.6"):
        rendered("{{ messages }}")
    monkeypatch.setattr("hasten.tasks.chat.version", lambda _: "3.2")
    assert rendered("x") == "x"


CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ 'w7' if m.role == 'user' else 'w9' }} {{ m.content }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}w8{% endif %}"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    settings = json.loads(found["tokenizer_config.json"]) | {"bos_token": "[CLS]"}
    return {**found, "tokenizer_config.json": json.dumps(settings).encode(), "chat_template.jinja": CHAT.encode()}


def opened(files: Mapping[str, bytes], *, most: int) -> Tokenizer:
    made = open_processor(files, max_length=most)
    assert isinstance(made, Tokenizer)
    return made


def test_a_long_conversation_loses_the_users_words_and_not_the_templates(files: Mapping[str, bytes]) -> None:
    tokenizer = opened(files, most=12)
    task = reading(get_task("text-generation"), tokenizer, Workload(chat=True, prefix="w5 "))
    words = [f"w{i}" for i in range(20, 50)]
    (example,) = task.encode(tokenizer, {"text": " ".join(words)})
    assert example.truncated
    assert example.left
    assert example.arrays["input_ids"].tolist() == [
        4, *tokenizer.ids("w7 w5"), *tokenizer.ids(" ".join(words[-7:])), 5, *tokenizer.ids("w8")
    ]  # fmt: skip
    (short,) = task.encode(tokenizer, {"text": "w20"})
    assert not short.truncated
    assert short.arrays["input_ids"].tolist() == [4, *tokenizer.ids("w7 w5 w20"), 5, *tokenizer.ids("w8")]


def test_a_template_that_fills_everything_is_refused(files: Mapping[str, bytes]) -> None:
    with pytest.raises(InputError, match="without the user's message"):
        opened(files, most=3).chat("w1 w2")


def test_the_end_is_the_one_that_the_template_writes(files: Mapping[str, bytes]) -> None:
    tokenizer = opened(files, most=12)
    assert tokenizer.closing_id((2, 5)) == 5
    assert tokenizer.closing_id((2,)) is None
