"""Golden recordings: rounding of another host is no difference, another recording is."""

from __future__ import annotations

import numpy as np
import pytest

from hasten.bundle.golden import check_golden, make_golden
from hasten.records import InputError
from hasten.tasks.rows import Rows

ROWS = Rows(("a",), None, (("said",),), "x", "", sounds=(b"sound",))


def test_features_are_compared_with_a_tolerance() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, 80, 300)).astype(np.float32)
    golden = make_golden(ROWS, batches=[{"input_features": features}], outputs=[np.ones((1, 3))])

    def checked(given: np.ndarray) -> float:  # type: ignore[type-arg]
        return check_golden(golden, lambda _: np.ones((1, 3)), batches=[{"input_features": given}], tolerance=1e-3)

    assert checked(features) == 0.0
    assert checked(features + rng.uniform(-1e-4, 1e-4, features.shape)) == 0.0
    for other in (features + 0.1, rng.normal(size=features.shape), features[:, :1], features[:, ::-1]):
        with pytest.raises(InputError, match="other numbers"):
            checked(other)
