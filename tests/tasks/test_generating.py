"""Tasks that write text: agreement with the original, scores, prompts, chats, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_tokenizer

from hasten.models.marian_tokens import HIDDEN
from hasten.records import Columns, InputError, Workload
from hasten.tasks import TASKS, get_task
from hasten.tasks.examples import collate
from hasten.tasks.generating import Generating, agreement
from hasten.tasks.processor import open_processor
from hasten.tasks.rows import Rows
from hasten.tasks.task import Generative, reading
from hasten.tasks.tokenize import Tokenizer

WRITING = [name for name in TASKS if isinstance(get_task(name), Generative)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def tokenizer(files: dict[str, bytes]) -> Tokenizer:
    made = open_processor(files, max_length=16)
    assert isinstance(made, Tokenizer)
    return made


def task_of(name: str, tokenizer: Tokenizer, **settings: object) -> Generating:
    made = reading(get_task(name), tokenizer, Workload(**settings))  # type: ignore[arg-type]
    assert isinstance(made, Generating)
    return made


def test_four_tasks_write() -> None:
    assert WRITING == ["text-generation", "summarization", "translation", "speech-recognition"]


def test_agreement_counts_up_to_the_first_other_token() -> None:
    reference = np.array([[7, 8, 9, 5], [7, 8, 5, -1], [7, 8, 9, 5], [7, 5, -1, -1]])
    outputs = np.array([[7, 8, 9, 5, -1], [7, 9, 5, -1, -1], [1, 8, 9, 5, -1], [7, 8, 8, 8, 8]])
    before, alike = agreement(outputs, reference)
    assert before.tolist() == pytest.approx([1.0, 1 / 3, 0.0, 0.5])
    assert alike.tolist() == pytest.approx([1.0, 2 / 3, 0.75, 0.5])


def test_forced_answers_are_compared_token_by_token(tokenizer: Tokenizer) -> None:
    task = task_of("text-generation", tokenizer).forcing()
    rows = Rows(("a", "b"), None, None, "x", "")
    reference = np.array([[7, 8, 9, 5], [7, 5, -1, -1]])
    found = task.score(np.array([[1, 8, 9, 5], [7, 9, -1, -1]]), rows, (), reference=reference)
    assert (found.metric, found.n) == ("next_token_agreement", 2)
    assert found.value == pytest.approx(100 * (0.75 + 0.5) / 2)
    assert dict(found.others) == {"tokens": 3.0}
    each = task.per_row(np.array([[1, 8, 9, 5], [7, 9, -1, -1]]), rows, (), reference=reference)
    assert each is not None
    assert each.tolist() == [75.0, 50.0]
    assert task.score(reference, rows, (), reference=reference).value == 100.0


def test_a_tokenizer_says_whether_it_can_cut_what_is_written() -> None:
    from tokenizers import Tokenizer as Plain
    from tokenizers import models

    known, hidden = ({"[UNK]": 0, piece: 1} for piece in ("w", f"{HIDDEN}w"))
    made = [Tokenizer(Plain(models.WordLevel(v, unk_token="[UNK]")).to_str(), max_length=4) for v in (known, hidden)]
    assert [tokenizer.writes for tokenizer in made] == [True, False]


def ids_of(tokenizer: Tokenizer, *texts: str) -> np.ndarray:
    longest = max(len(tokenizer.ids(t)) for t in texts) + 1
    rows = [[*tokenizer.ids(t), 5] for t in texts]
    return np.array([row + [-1] * (longest - len(row)) for row in rows])


@pytest.mark.parametrize("name", WRITING)
def test_a_good_model_and_a_bad_one_differ(name: str, tokenizer: Tokenizer) -> None:
    task, wanted = task_of(name, tokenizer), [f"w{i} w{i + 1} w{i + 2} w{i + 3} w{i + 4}" for i in range(8)]
    rows = Rows(tuple("ab"[i % 2] * (i + 1) for i in range(8)), None, tuple((t,) for t in wanted), "x", "")
    good, bad = ids_of(tokenizer, *wanted), ids_of(tokenizer, *(f"w4{i}" for i in range(8)))
    best, worst = (task.score(o, rows, (), reference=good) for o in (good, bad))
    assert best.value == pytest.approx(100.0)
    assert worst.value < 20.0
    assert best.others["agreement"] == 100.0
    assert worst.others["agreement"] == 0.0
    every = np.arange(8)
    assert task.scorer(good, rows, reference=None)(every) == pytest.approx(best.value)
    per_row = task.per_row(good, rows, (), reference=good)
    assert per_row is None or per_row.mean() == pytest.approx(best.value)
    assert task.decode(good, rows, ())[0] == {"text": wanted[0], "tokens": 6}
    assert task.predictions(good, rows, ()) == (wanted, wanted)


def test_without_references_the_original_counts(tokenizer: Tokenizer) -> None:
    task, rows = task_of("text-generation", tokenizer), Rows(("a", "b"), None, None, "x", "")
    original, other = ids_of(tokenizer, "w1 w2", "w3 w4"), ids_of(tokenizer, "w1 w3", "w3 w4")
    assert task.score(original, rows, (), reference=original).value == 100.0
    found = task.score(other, rows, (), reference=original)
    assert (found.metric, found.value) == ("agreement", pytest.approx(100.0 * (1 / 3 + 1) / 2))
    per_row = task.per_row(other, rows, (), reference=original)
    assert per_row is not None
    assert per_row.mean() == pytest.approx(found.value)


def test_prompts_are_padded_on_the_left_and_cut_at_the_front(tokenizer: Tokenizer) -> None:
    task = task_of("text-generation", tokenizer)
    short, long = (task.encode(tokenizer, {"text": t})[0] for t in ("w1", " ".join(f"w{i}" for i in range(30))))
    assert long.length == 16
    assert long.truncated
    assert long.arrays["input_ids"][0] == 4  # the first special token stays
    assert long.arrays["input_ids"][-2:].tolist() == [tokenizer.ids("w29")[0], 5]
    batch = collate([short, long], ("input_ids", "attention_mask"))
    assert batch["attention_mask"][0].tolist() == [0] * 13 + [1] * 3
    assert batch["attention_mask"][:, -1].all()
    assert short.cut(5).left


def test_encoders_read_from_the_left_with_the_prefix(tokenizer: Tokenizer) -> None:
    task = task_of("summarization", tokenizer, prefix="w9 ")
    example = task.encode(tokenizer, {"text": "w1"})[0]
    assert not example.left
    assert example.arrays["input_ids"].tolist() == tokenizer.encode("w9 w1").arrays["input_ids"].tolist()


CHAT = (
    "{{ bos_token }}{% for m in messages %}w7 {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}w8{% endif %}"
)


@pytest.mark.parametrize("where", ["settings", "file"])
def test_a_chat_goes_through_the_checkpoints_template(where: str, files: dict[str, bytes]) -> None:
    settings = json.loads(files["tokenizer_config.json"]) | {"bos_token": {"content": "[CLS]"}}
    own = {"chat_template.jinja": CHAT.encode()} if where == "file" else {}
    settings |= {"chat_template": CHAT} if where == "settings" else {}
    made = open_processor({**files, "tokenizer_config.json": json.dumps(settings).encode(), **own}, max_length=16)
    assert isinstance(made, Tokenizer)
    example = task_of("text-generation", made, chat=True).encode(made, {"text": "w1"})[0]
    assert example.arrays["input_ids"].tolist() == [4, *made.ids("w7 w1 w8")]  # no special token twice


def test_a_chat_without_a_template_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="chat template"):
        task_of("text-generation", tokenizer, chat=True).encode(tokenizer, {"text": "w1"})


@pytest.mark.parametrize("template", ["{{ 1 / 0 }", "{{ raise_exception('no') }}", "{{ ''.__class__.__mro__ }}"])
def test_a_template_that_fails_says_so(template: str, files: dict[str, bytes]) -> None:
    made = open_processor({**files, "chat_template.jinja": template.encode()}, max_length=16)
    assert isinstance(made, Tokenizer)
    with pytest.raises(InputError, match="chat template does not work"):
        made.conversation("hello")


def test_recordings_need_references(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="no references"):
        task_of("speech-recognition", tokenizer).check(Rows(("a",), None, None, "x", ""), ())


def test_a_prompt_without_a_token_is_refused(files: dict[str, bytes]) -> None:
    bare = json.loads(files["tokenizer.json"]) | {"post_processor": None}
    with pytest.raises(InputError, match="prompt without a token"):
        Tokenizer(json.dumps(bare), max_length=8).prompt(" ")


def test_a_text_file_is_prompts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("w1 w2\n\nw3")
    assert len(get_task("text-generation").read(tmp_path / "a.txt", columns=Columns())) == 1
