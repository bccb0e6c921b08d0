"""Embeddings: one vector per text.

With labelled pairs the metric is Spearman's rank correlation of cosine similarity and
label. Without labels it is fidelity to the original model: the mean cosine between
old and new vectors, with the overlap of each text's ten nearest neighbours beside it.
All in points (100 is perfect).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten.records import Columns, InputError, Quality
from hasten.tasks.examples import Example
from hasten.tasks.rows import Rows, read_rows
from hasten.tasks.task import Array, Item, few_rows_warning

_NEIGHBOURS = 10


@dataclass(frozen=True, slots=True)
class FeatureExtraction:
    """Outputs are embeddings [N, H]; the two texts of a pair are embedded apart, [N, 2, H]."""

    name: str = "feature-extraction"
    head: str = ""
    auto: str = "AutoModel"
    aliases: Mapping[str, str] = field(default_factory=dict)
    labelled: bool = False
    per_token: bool = False
    foretells: bool = False

    def read(self, source: str | Path, *, columns: Columns, labels_wanted: bool = True) -> Rows:
        return read_rows(source, columns=columns, labels_wanted=labels_wanted)

    def encode(self, processor: Any, item: Item) -> tuple[Example, ...]:
        texts = [item["text"], *([item["text_pair"]] if item.get("text_pair") is not None else [])]
        return tuple(processor.encode(text) for text in texts)

    def targets(self, rows: Rows, labels: Sequence[str], encoded: Sequence[Sequence[Example]]) -> list[Array] | None:
        """A similarity says nothing about either vector alone."""
        del rows, labels, encoded
        return None

    def outputs(self, raw: Sequence[Array], encoded: Sequence[Sequence[Example]]) -> Array:
        each = len(encoded[0])
        vectors = np.stack(raw)
        return vectors if each == 1 else vectors.reshape(len(encoded), each, -1)

    def wrap(self, checkpoint: Any) -> Any:
        return self.wrap_model(checkpoint.model, pooling=checkpoint.pooling, normalize=checkpoint.normalize)

    def wrap_model(self, model: Any, *, pooling: str | None, normalize: bool) -> Any:
        from hasten.tasks.wrappers import PooledWrapper

        return PooledWrapper(model, pooling=pooling or "mean", normalize=normalize)

    def check(self, rows: Rows, labels: Sequence[str]) -> tuple[Rows, tuple[str, ...]]:
        """Numeric labels with pairs are used; other labels are set aside with a warning."""
        del labels
        warnings = few_rows_warning(len(rows.texts))
        if rows.labels is None:
            return rows, warnings
        if rows.pairs is None:
            note = "labels without a second text are not used: quality is fidelity to the original model"
            return replace(rows, labels=None), (*warnings, note)
        try:
            scores = tuple(float(x) for x in rows.labels)
        except ValueError as error:
            raise InputError(
                f"a label of {rows.source} is no number ({error})",
                expected="a similarity for each pair of texts",
                remedy="name the right column with --label-column",
            ) from error
        if len(set(scores)) < 2 or not np.isfinite(scores).all():
            raise InputError(
                f"the similarities of {rows.source} are all {scores[0]:g} or not finite",
                expected="similarities that differ",
                remedy="give pairs of many similarities",
            )
        return replace(rows, labels=scores), warnings

    def comparable(self, outputs: Array) -> Array:
        return outputs

    def score(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Quality:
        del labels
        if rows.labels is not None and rows.pairs is not None:
            from scipy.stats import spearmanr

            found = spearmanr(pair_cosines(outputs), np.array(rows.labels, dtype=np.float64)).statistic
            return Quality("spearman", 100.0 * float(np.nan_to_num(found)), len(rows.texts))
        against = outputs if reference is None else reference
        cosines = _cosines(outputs, against)
        others = {"neighbour_overlap": 100.0 * neighbour_overlap(_flat(outputs), _flat(against))}
        return Quality("fidelity", 100.0 * float(cosines.mean()), cosines.size, others)

    def per_row(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Array | None:
        del labels
        if rows.labels is not None and rows.pairs is not None:
            return None
        cosines = _cosines(outputs, outputs if reference is None else reference)
        return 100.0 * (cosines if cosines.ndim == 1 else cosines.mean(axis=1))

    def predictions(self, outputs: Array, rows: Rows, labels: Sequence[str]) -> tuple[list[str], list[str]] | None:
        """A vector is no word."""
        del outputs, rows, labels
        return None

    def decode(self, outputs: Array, rows: Rows, labels: Sequence[str]) -> list[Any]:
        """One list of floats per row; for a pair ``{"similarity", "vectors"}`` with both, and their cosine."""
        del rows, labels
        vectors = outputs.astype(np.float64).tolist()
        if outputs.ndim == 2:
            return list(vectors)
        cosines = pair_cosines(outputs)
        return [{"similarity": float(c), "vectors": both} for c, both in zip(cosines, vectors, strict=True)]


def pair_cosines(outputs: Array) -> Array:
    """Cosine of the two vectors of each row: [N, 2, H] -> [N]."""
    return _cosines(outputs[:, 0], outputs[:, 1])


def _flat(outputs: Array) -> Array:
    """Every vector by itself."""
    return outputs.reshape(-1, outputs.shape[-1])


def neighbour_overlap(outputs: Array, reference: Array, *, count: int = _NEIGHBOURS) -> float:
    """Mean share of each row's ``count`` nearest rows (by cosine) that both spaces agree on; 0 to 1."""
    count = min(count, len(outputs) - 1)
    if count < 1:
        return 1.0
    near, wanted = _nearest(outputs, count), _nearest(reference, count)
    return float(np.mean([len(set(a) & set(b)) / count for a, b in zip(near, wanted, strict=True)]))


def _nearest(vectors: Array, count: int) -> Array:
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    return np.argpartition(-similar, count - 1, axis=1)[:, :count]


def _cosines(a: Array, b: Array) -> Array:
    x, y = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    return np.asarray((x * y).sum(axis=-1) / np.maximum(norms, 1e-12))
