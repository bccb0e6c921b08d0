"""Which recipes a run will try, in which order.

Takes the request, asks the runtimes what they offer on this host, gives recipes. The
baseline itself is not a candidate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from hasten.measure.host import instruction_sets
from hasten.passes import PASSES, check_installed
from hasten.pipeline.request import Request
from hasten.plan.search import slow_to_build
from hasten.plan.space import recipes as narrowed
from hasten.records import Config, InputError, Recipe
from hasten.runtimes import ON_REQUEST, RUNTIMES, get_runtime, read_recipe
from hasten.runtimes.generation_spaces import generation_space
from hasten.tasks import get_task
from hasten.tasks.task import Generative

# What --techniques may name beside the techniques of runtimes.
SEARCHED = tuple(PASSES)


def baseline_recipe() -> Recipe:
    """The model as PyTorch loads it: what every candidate is measured against."""
    return Recipe(passes=(), runtime=get_runtime("torch").space(instructions=frozenset(), threads=1)[0])


def candidate_recipes(request: Request) -> tuple[Recipe, ...]:
    """What the available runtimes offer here, narrowed to what the user named; the one recipe that was asked for, and
    the original set up well.

    Raises InputError for an unknown name, a named runtime that is not available (with the reason), or when
    nothing is left to try; MissingDependency for a named pass whose library is not installed.
    """
    if request.recipe is not None:
        asked = read_recipe(json.loads(request.recipe))
        if asked == baseline_recipe():
            raise InputError(
                f"the recipe {asked.label} is the original as it is", expected="a recipe that changes something",
                remedy="add a pass, or another runtime; every run measures the original anyway",
            )  # fmt: skip
        return (asked, *(r for r in _tuned_forms(request) if r not in (asked, baseline_recipe())))
    unknown = [name for name in request.runtimes or () if name not in RUNTIMES]
    usual = tuple(name for name in RUNTIMES if name not in ON_REQUEST)
    wanted = (request.runtimes or usual) if not unknown else tuple(RUNTIMES)
    configs: list[Config] = []
    for name in wanted:
        probe = get_runtime(name).probe()
        if probe.available:
            configs += _offered(name, request)
        elif request.runtimes and not unknown:
            raise InputError(f"{name}: {probe.reason}", expected="an available runtime", remedy=str(probe.remedy))
    offered = narrowed(
        configs,
        runtimes=request.runtimes,
        techniques=request.techniques,
        known_runtimes=tuple(RUNTIMES),
        known_passes=SEARCHED,
    )
    check_installed([t for t in request.techniques or () if t in PASSES])
    candidates = [r for r in dict.fromkeys((*offered, *_tuned_forms(request))) if r != baseline_recipe()]
    quick = [r for r in candidates if not slow_to_build(r)]
    return (*_interleaved(quick), *(r for r in candidates if slow_to_build(r)))


def _offered(name: str, request: Request) -> tuple[Config, ...]:
    """What an available runtime offers for the task. Raises InputError for a named one that cannot write text."""
    instructions, threads = instruction_sets(), request.workload.threads
    if not isinstance(get_task(request.task), Generative):
        return get_runtime(name).space(instructions=instructions, threads=threads)
    found = generation_space(name, instructions=instructions, threads=threads)
    if not found and request.runtimes:
        raise InputError(
            f"{name} does not write text here",
            expected="a runtime with a cache: torch, onnxruntime, openvino or native",
            remedy=f"leave {name} out of --runtimes",
        )  # fmt: skip
    return found


def _tuned_forms(request: Request) -> list[Recipe]:
    """The original, set up well: whatever the search is narrowed to, the choice has to beat that as well."""
    configs = get_runtime("torch").space(instructions=instruction_sets(), threads=request.workload.threads)
    made = [Recipe(passes=(), runtime=config) for config in configs]
    return [r for r in made if r.to_dict()["runtime"]["precision"] == "fp32" and not slow_to_build(r)]


def _interleaved(recipes: Sequence[Recipe]) -> Iterator[Recipe]:
    """The best of each runtime first, then the second of each: an early stop has seen them all.

    The baseline's own runtime comes last in each turn: it is the least likely to bring much.
    """
    by_kind: dict[str, list[Recipe]] = {}
    for recipe in sorted(recipes, key=lambda r: r.runtime.kind == baseline_recipe().runtime.kind):
        by_kind.setdefault(recipe.runtime.kind, []).append(recipe)
    for number in range(max(map(len, by_kind.values()), default=0)):
        for group in by_kind.values():
            yield from group[number : number + 1]
