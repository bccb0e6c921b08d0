"""Text regression: STS-B's forms are read, correlations separate good from bad, what is no number is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hasten.records import Columns, InputError
from hasten.tasks import get_task
from hasten.tasks.rows import Rows
from hasten.tasks.tokenize import Tokenizer

TASK = get_task("text-regression")


def rows(labels: list[str] | None, count: int = 2) -> Rows:
    texts = tuple(f"text {i}" for i in range(count if labels is None else len(labels)))
    return Rows(texts, texts, None if labels is None else tuple(labels), "r", "0", ("sentence1", "sentence2"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "sentence1,sentence2,label,idx\na,b,3.8,0\nc,d,5.0,1\n"),
        ("a.tsv", "index\tsentence1\tsentence2\tscore\n0\ta\tb\t3.8\n1\tc\td\t5\n"),
        (
            "a.jsonl",
            '{"sentence1": "a", "sentence2": "b", "label": 3.8}\n{"sentence1": "c", "sentence2": "d", "label": 5}\n',
        ),
    ],
)
def test_forms(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    found, _ = TASK.check(TASK.read(tmp_path / name, columns=Columns()), ())
    assert (found.texts, found.pairs, found.labels) == (("a", "c"), ("b", "d"), (3.8, 5.0))


def test_good_and_bad_models_separate() -> None:
    from scipy.stats import pearsonr, spearmanr

    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 5, size=200)
    data, warnings = TASK.check(rows([str(x) for x in truth]), ())
    assert warnings == ()
    good, bad = ((truth + s * rng.normal(size=200))[:, None].astype(np.float32) for s in (0.1, 100.0))
    scores = [TASK.score(outputs, data, (), reference=None) for outputs in (good, bad)]
    assert scores[0].value > 99
    assert scores[1].value < 50
    for outputs, score in zip((good, bad), scores, strict=True):
        assert (score.metric, score.n) == ("pearson", 200)
        assert score.value == pytest.approx(100 * pearsonr(truth, outputs[:, 0]).statistic)
        assert score.others["spearman"] == pytest.approx(100 * spearmanr(truth, outputs[:, 0]).statistic)
        assert score.others["rmse"] == pytest.approx(np.sqrt(np.mean((truth - outputs[:, 0]) ** 2)), rel=1e-4)
    assert TASK.per_row(good, data, (), reference=None) is None
    assert TASK.predictions(good, data, ()) is None
    assert TASK.decode(good, data, ())[7] == {"score": pytest.approx(float(good[7, 0]))}


@pytest.mark.filterwarnings("error")
def test_a_model_that_always_says_the_same_scores_nothing() -> None:
    data, _ = TASK.check(rows(["1", "2", "3"]), ())
    assert TASK.score(np.ones((3, 1)), data, (), reference=None).value == 0.0
    assert TASK.score(np.arange(3.0)[:, None], data.take([1, 1, 1]), (), reference=None).value == 0.0


@pytest.mark.parametrize("labels", [["1", "x"], ["1", "nan"], ["inf", "1"], ["1", None]])
def test_what_is_no_number_is_named_with_its_row(labels: list[str]) -> None:
    with pytest.raises(InputError, match=r"row [12] of r has the label"):
        TASK.check(rows(labels), ())


def test_refuses_what_says_nothing() -> None:
    with pytest.raises(InputError, match="no label column"):
        TASK.check(rows(None), ())
    with pytest.raises(InputError, match="all 3 rows"):
        TASK.check(rows(["2", "2.0", "2"]), ())
    assert "only 2 rows" in TASK.check(rows(["1", "2"]), ())[1][0]


def test_a_classifier_is_refused() -> None:
    with pytest.raises(InputError, match="3 outputs"):
        TASK.wrap_model(SimpleNamespace(config=SimpleNamespace(num_labels=3)), pooling=None, normalize=False)


def test_examples_and_targets(checkpoint: Callable[[str], Path]) -> None:
    tokenizer = Tokenizer((checkpoint("bert") / "tokenizer.json").read_text(), max_length=40)
    data, _ = TASK.check(rows(["1", "2.5"]), ())
    encoded = [TASK.encode(tokenizer, item) for item in data.items()]
    assert all(len(own) == 1 and own[0].arrays["token_type_ids"].any() for own in encoded)
    targets = TASK.targets(data, (), encoded)
    assert targets is not None
    assert [(float(t), t.dtype) for t in targets] == [(1.0, np.float32), (2.5, np.float32)]
    assert TASK.targets(rows(None), (), encoded) is None
    assert TASK.outputs([np.ones(1), np.zeros(1)], encoded).shape == (2, 1)
