"""How long answers and prompts may be: from the flags, from the references, within the model's positions."""

from __future__ import annotations

import pytest

from hasten.models.writing import Writing
from hasten.pipeline.answering import answers_of, check_workload, prompt_limit
from hasten.pipeline.request import make_request
from hasten.plan.budget import parse_budget
from hasten.plan.choose import checks
from hasten.records import Columns, Figures, InputError, Latency, Workload
from hasten.tasks.rows import Rows

DECODER = Writing(ends=(5,), longest=64)
READER = Writing(ends=(5,), start=(1,), longest=64, encoder=True)


def rows_of(*lengths: int) -> Rows:
    texts = tuple("w " * n for n in lengths)
    return Rows(texts, None, tuple((t,) for t in texts), "x", "")


def count(text: str) -> int:
    return len(text.split())


def test_the_references_say_how_long_answers_are() -> None:
    found = answers_of(Workload(), DECODER, rows_of(*range(1, 21)), count=count)
    assert (found.timed, found.most) == (12, 21)  # with the end
    assert found.measured.new_tokens == 12
    assert found.measured.ignore_ends
    assert found.scored.new_tokens == 21
    assert found.scored.ends == (5,)


def test_a_flag_beats_the_references_and_nothing_means_64() -> None:
    found = answers_of(Workload(new_tokens=7), DECODER, rows_of(3, 3), count=count)
    assert (found.timed, found.most) == (7, 7)
    assert answers_of(Workload(), Writing(), None, count=count).timed == 64


def test_answers_and_prompts_share_a_decoders_positions() -> None:
    long = answers_of(Workload(), DECODER, rows_of(500, 500), count=count)
    assert long.most == 56  # eight are left for a prompt
    assert prompt_limit(Workload(), DECODER, long, limit=512) == 8
    assert prompt_limit(Workload(), READER, long, limit=48) == 48
    with pytest.raises(InputError, match="--new-tokens 60"):
        answers_of(Workload(new_tokens=60), DECODER, None, count=count)
    with pytest.raises(InputError, match="--prompt-tokens 9"):
        prompt_limit(Workload(prompt_tokens=9), DECODER, long, limit=512)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"new_tokens": 3}, "--new-tokens for text-classification"),
        ({"chat": True}, "--chat for text-classification"),
        ({"prefix": "a"}, "--prefix"),
        ({"budget": "ttft_ms<=50"}, "ttft_ms<=50 for text-classification"),
        ({"budget": "tokens_per_s>=5"}, "which writes no text"),
    ],
)
def test_what_only_text_has_is_refused_elsewhere(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        request(task="text-classification", **options)
    assert request(task="text-generation", **options).task == "text-generation"


def request(*, task: str, budget: str = "", **options: object):  # type: ignore[no-untyped-def]
    return make_request(
        "m",
        task=task,
        data="rows.csv",
        budget=budget,
        time="1m",
        out="out",
        columns=Columns(),
        **options,  # type: ignore[arg-type]
    )


def test_a_translator_takes_no_chat() -> None:
    with pytest.raises(InputError, match="--chat for translation"):
        check_workload("translation", Workload(chat=True), parse_budget(""))


def test_first_and_further_tokens_can_be_bounded() -> None:
    first, further = Latency(40, 45, 50, 60, 9), Latency(10, 11, 12, 13, 9)
    figures = Figures(ttft_ms=first, tpot_ms=further, tokens_per_s=90.0)
    budget = parse_budget("ttft<=45, ttft_p95_ms<=45, tpot<=10ms, tpot_p95<=11, tokens_per_s>=80")
    made = checks(budget, figures=figures, speedup=None, quality_drop=None)
    assert [c.measured for c in made] == [40, 50, 10, 12, 90.0]
    assert [c.holds for c in made] == [True, False, True, False, True]
    assert not checks(parse_budget("tpot<=10"), figures=Figures(), speedup=None, quality_drop=None)[0].holds
