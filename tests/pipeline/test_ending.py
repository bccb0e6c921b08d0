"""What the end of a run says of itself."""

from __future__ import annotations

from hasten.passes import GqaConfig
from hasten.pipeline.ending import not_built, too_short
from hasten.records import Figures, Recipe, Trial
from hasten.runtimes.torch import TorchConfig


def test_time_that_the_original_alone_used_up_names_one_that_would_do() -> None:
    assert too_short(59.0, 60.0) == []
    (said,) = too_short(269.0, 60.0)
    assert "269 s of the 60 s" in said
    assert "--time 23m" in said


def test_a_verdict_without_the_recipe_that_was_asked_for_says_why() -> None:
    asked, other = Recipe((GqaConfig(groups=3),), TorchConfig()), Recipe((), TorchConfig(attention="eager"))
    fell, fine = (
        Trial(
            recipe=recipe.to_dict(), recipe_id=recipe.id, label=recipe.label, stage="preflight", status=status,
            elapsed_s=1.0, rejected_at=at, reason=why, figures=Figures(),
        )
        for recipe, status, at, why in (
            (asked, "rejected", "gqa", "4 heads cannot be shared out among 3"), (other, "ok", None, None),
        )
    )  # fmt: skip
    (said,) = not_built([fell, fine], asked.id)
    assert "fell at gqa: 4 heads cannot be shared out among 3" in said
    assert not_built([fell, fine], other.id) == []
    assert not_built([], asked.id) == []
