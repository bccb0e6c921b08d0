"""Divide the rows: calibration, selection, final test. Disjoint, seeded, stratified.

Takes :class:`Rows`, gives row numbers. The same text never lands in two splits, in
whatever case or spacing it is repeated. Shuffling and stratifying are scikit-learn's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hasten.records import InputError, SplitSizes
from hasten.tasks.rows import Rows

_FEWEST = 6
_MOST_EVALUATED = 2000  # rows each for selection and final test: an interval of about two points
_CALIBRATION_SHARE = 0.2
_MOST_CLASSES = 200
_STRATIFIED = ("text-classification", "image-classification")


@dataclass(frozen=True, slots=True)
class Splits:
    """Row numbers of each split (shuffled), how they came about, and what to warn of."""

    calibration: tuple[int, ...]
    selection: tuple[int, ...]
    test: tuple[int, ...]
    facts: SplitSizes
    notes: tuple[str, ...] = ()


def split_rows(rows: Rows, *, seed: int, task: str) -> Splits:
    """One file into three parts: a fifth calibrates, the rest is halved; beyond 2,000 rows each for selection and
    final test, all further rows are there to calibrate and to learn from.

    Repeats of a text are dropped (counted). Raises InputError for fewer than six different texts.
    """
    unique = _first_of_each(rows)
    if len(unique) < _FEWEST:
        raise InputError(
            f"{rows.source} has {len(unique)} different texts",
            expected=f"at least {_FEWEST}, and a few hundred for a verdict that means something",
            remedy="give more rows",
        )
    strata = _strata(rows, unique) if task in _STRATIFIED else None
    calibration = max(1, round(_CALIBRATION_SHARE * len(unique)), len(unique) - 2 * _MOST_EVALUATED)
    rest, first = _cut(unique, strata, size=calibration, seed=seed)
    strata_of_rest = None if strata is None else _pick(strata, unique, rest)
    selection, test = _cut(rest, strata_of_rest, size=(len(rest) + 1) // 2, seed=seed + 1)
    how = "one file, shuffled" + (", stratified by label" if strata else "") + ", repeated texts dropped"
    facts = SplitSizes(
        calibration=len(first), selection=len(selection), test=len(test), seed=seed, how=how,
        duplicate_rows=len(rows) - len(unique),
    )  # fmt: skip
    return Splits(tuple(first), tuple(selection), tuple(test), facts)


def splits_from_files(calibration: Rows, selection: Rows, test: Rows, *, seed: int = 0) -> tuple[Rows, Splits]:
    """The user's own three files, joined, each shuffled. A text that a later file holds too is left out of the
    earlier one (counted, noted). Raises InputError when nothing is left of a file, or their columns differ."""
    parts, notes = _apart((calibration, selection, test))
    joined = _join(parts)
    sizes = [len(part) for part in parts]
    first, second = sizes[0], sizes[0] + sizes[1]
    facts = SplitSizes(
        calibration=sizes[0], selection=sizes[1], test=sizes[2], seed=seed,
        how="three files of the user's, each shuffled" + (", common texts in the last of them alone" if notes else ""),
        duplicate_rows=len(calibration) + len(selection) + len(test) - sum(sizes),
    )  # fmt: skip
    # Files are often sorted by label; whoever takes the head of a split must get a fair sample.
    rng = np.random.default_rng(seed)
    bounds = ((0, first), (first, second), (second, len(joined)))
    index = [tuple(int(low + i) for i in rng.permutation(high - low)) for low, high in bounds]
    return joined, Splits(index[0], index[1], index[2], facts, notes)


def _apart(parts: Sequence[Rows]) -> tuple[list[Rows], tuple[str, ...]]:
    """Published splits often share a few texts. What judges stays whole, what is learnt from gives way: the final test
    means what its file says, and has still not been seen."""
    kept, notes = [parts[-1]], []
    held, later = set(parts[-1].keys()), parts[-1].source
    for part in reversed(parts[:-1]):
        keys = part.keys()
        index = [number for number, key in enumerate(keys) if key not in held]
        if not index:
            raise InputError(
                f"every text of {part.source} is in {later} too",
                expected="three files with rows of their own, or the final test proves nothing",
                remedy="divide the rows, or give one file with --data and let it be divided",
            )
        if len(index) < len(keys):
            notes.append(f"{len(keys) - len(index):,} of {len(keys):,} rows of {part.source} are left out: "
                         f"their texts are in {later} too")  # fmt: skip
        kept.append(part.take(index))
        held.update(keys)
        later = f"{part.source} or {later}"
    return kept[::-1], tuple(reversed(notes))


def _join(parts: Sequence[Rows]) -> Rows:
    for name in ("pairs", "labels", "images", "sounds"):
        if len({getattr(part, name) is None for part in parts}) > 1:
            raise InputError(
                f"some of the three files have {name}, others have none",
                expected="the same columns in all three",
                remedy="name the columns with --text-column, --text-pair-column and --label-column",
            )
    first = parts[0]
    return Rows(
        texts=tuple(t for part in parts for t in part.texts),
        pairs=None if first.pairs is None else tuple(t for part in parts for t in part.pairs or ()),
        labels=None if first.labels is None else tuple(x for part in parts for x in part.labels or ()),
        source=", ".join(part.source for part in parts),
        sha256="-".join(part.sha256[:16] for part in parts),
        column_names=first.column_names,
        images=None if first.images is None else tuple(i for part in parts for i in part.images or ()),
        sounds=None if first.sounds is None else tuple(s for part in parts for s in part.sounds or ()),
    )


def _first_of_each(rows: Rows) -> list[int]:
    """The first row of each different text: further ones would leak between splits or count twice."""
    first: dict[str, int] = {}
    for number, key in enumerate(rows.keys()):
        first.setdefault(key, number)
    return list(first.values())


def _strata(rows: Rows, index: Sequence[int]) -> list[str] | None:
    """Labels to stratify by, rare ones lumped; ``None`` where that is impossible."""
    if rows.labels is None:
        return None
    labels = [str(rows.labels[i]) for i in index]
    return labels if len(set(labels)) <= _MOST_CLASSES else None


def _pick(strata: Sequence[str], index: Sequence[int], wanted: Sequence[int]) -> list[str]:
    by_row = dict(zip(index, strata, strict=True))
    return [by_row[i] for i in wanted]


def _cut(index: Sequence[int], strata: Sequence[str] | None, *, size: int, seed: int) -> tuple[list[int], list[int]]:
    """Split off ``size`` shuffled rows: (the rest, the cut)."""
    from sklearn.model_selection import train_test_split

    groups = _lumped(strata, size=size) if strata is not None else None
    rest, cut = train_test_split(list(index), test_size=size, random_state=seed, shuffle=True, stratify=groups)
    return rest, cut


def _lumped(strata: Sequence[str], *, size: int) -> list[str] | None:
    """Classes too rare to divide become one group; too many groups for the cut means no stratification."""
    counts = Counter(strata)
    groups = [label if counts[label] >= 4 else "(rare)" for label in strata]
    final = Counter(groups)
    if min(final.values()) < 2 or len(final) > min(size, len(strata) - size) or len(final) < 2:
        return None
    return groups
