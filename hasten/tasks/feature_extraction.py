"""Embeddings: one vector per text.

With labelled pairs the metric is Spearman's rank correlation of cosine similarity and
label. Without labels it is fidelity to the original model: the mean cosine between
old and new vectors, with the overlap of each text's ten nearest neighbours beside it.
All in points (100 is perfect).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hasten.records import InputError, Quality
from hasten.tasks.rows import Rows
from hasten.tasks.task import Array, few_rows_warning

_NEIGHBOURS = 10


@dataclass(frozen=True, slots=True)
class FeatureExtraction:
    """Outputs are embeddings [N, H]; for labelled pairs the two texts are embedded apart, [2N, H]."""

    name: str = "feature-extraction"
    pairs_apart: bool = True

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

    def score(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Quality:
        del labels
        if rows.labels is not None and rows.pairs is not None:
            from scipy.stats import spearmanr

            found = spearmanr(pair_cosines(outputs), np.array(rows.labels, dtype=np.float64)).statistic
            return Quality("spearman", 100.0 * float(np.nan_to_num(found)), len(rows.texts))
        against = outputs if reference is None else reference
        cosines = _cosines(outputs, against)
        others = {"neighbour_overlap": 100.0 * neighbour_overlap(outputs, against)}
        return Quality("fidelity", 100.0 * float(cosines.mean()), len(cosines), others)

    def per_row(self, outputs: Array, rows: Rows, labels: Sequence[str], *, reference: Array | None) -> Array | None:
        del labels
        if rows.labels is not None and rows.pairs is not None:
            return None
        return 100.0 * _cosines(outputs, outputs if reference is None else reference)

    def decode(self, outputs: Array, labels: Sequence[str]) -> list[Any]:
        """One list of floats per row."""
        del labels
        return [[float(x) for x in row] for row in outputs]


def pair_cosines(outputs: Array) -> Array:
    """Cosine of row 2i with row 2i+1: [2N, H] -> [N]."""
    return _cosines(outputs[0::2], outputs[1::2])


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
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.asarray((x * y).sum(axis=1) / np.maximum(norms, 1e-12))
