"""What the end of a run says of itself."""

from __future__ import annotations

from hasten.pipeline.ending import too_short


def test_time_that_the_original_alone_used_up_names_one_that_would_do() -> None:
    assert too_short(59.0, 60.0) == []
    (said,) = too_short(269.0, 60.0)
    assert "269 s of the 60 s" in said
    assert "--time 23m" in said
