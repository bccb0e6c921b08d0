"""The frozen records that stages hand to each other.

Takes nothing, gives types: every other room imports this one. Knows no torch,
no runtime and no file layout, so importing it costs milliseconds.
Units stand in the names: ``_ms``, ``_s``, ``_bytes``, ``_j``, ``_pt`` (points of a
metric, so 90.0 % -> 89.0 % is 1 point).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast, runtime_checkable

from hasten.errors import HastenError, InputError, MissingDependency, Rejected, did_you_mean

__all__ = [
    "Budget", "Check", "Columns", "Config", "Constraint", "Energy", "Figures", "Flip", "HastenError", "Host",
    "InputError", "Interval", "Latency", "Measured", "Metric", "MissingDependency", "ModelRef", "Outcome",
    "Prediction", "Quality", "Recipe", "Rejected", "SplitSizes", "Stage", "Trial", "Verdict", "Workload",
    "config_from_dict", "config_to_dict", "read_as",
]  # fmt: skip

T = TypeVar("T")

# --------------------------------------------------------------------------- recipes


@runtime_checkable
class Config(Protocol):
    """A frozen dataclass with a ``kind``: one pass's or one runtime's settings."""

    kind: ClassVar[str]

    @property
    def label(self) -> str:
        """A few words for tables, e.g. ``"int8 dynamic"``."""
        ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """An ordered tuple of pass configs and one runtime config: all it takes to rebuild a candidate."""

    passes: tuple[Config, ...]
    runtime: Config

    def to_dict(self) -> dict[str, Any]:
        return {
            "passes": [config_to_dict(p) for p in self.passes],
            "runtime": config_to_dict(self.runtime),
        }

    @property
    def id(self) -> str:
        """Ten hex digits of the SHA-256 of the canonical JSON: stable across processes and versions."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def label(self) -> str:
        return " + ".join([*(p.label for p in self.passes), f"{self.runtime.kind} {self.runtime.label}"])


def config_to_dict(config: Config) -> dict[str, Any]:
    """One config as plain data with its ``kind``, numbers of their declared types: 12 epochs and 12.0 are the same.

    Raises InputError for an ill-typed setting.
    """
    given = dataclasses.asdict(config)  # type: ignore[call-overload]  # every config is one
    made: Any = config_from_dict({"kind": config.kind, **given}, {config.kind: type(config)})
    return {"kind": config.kind, **dataclasses.asdict(made)}


def config_from_dict(data: Mapping[str, Any], table: Mapping[str, type]) -> Config:
    """The inverse of :func:`config_to_dict`; ``table`` maps a kind to its dataclass.

    Raises InputError for an unknown kind or an unknown, missing or ill-typed setting.
    """
    from pydantic import ValidationError

    kind = str(data.get("kind"))
    if kind not in table:
        raise InputError(
            f"unknown recipe part {kind!r}",
            expected=f"one of {', '.join(sorted(table))}",
            remedy=did_you_mean(kind, table, otherwise="correct it, or use the hasten version that wrote it"),
        )
    known = [f.name for f in dataclasses.fields(table[kind])]
    settings = {k: v for k, v in data.items() if k != "kind"}
    try:
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise _bad_setting(kind, unknown[0], "is not known", known)
        made: Config = read_as(table[kind], settings)
    except ValidationError as error:
        first = error.errors()[0]
        own = first.get("ctx", {}).get("error")
        if isinstance(own, InputError):  # the config's own words
            raise own from error
        raise _bad_setting(kind, ".".join(map(str, first["loc"])), first["msg"], known) from error
    return made


def read_as(kind: type[T], data: Any) -> T:
    """Plain data as ``kind``. Raises pydantic's ValidationError."""
    made: T = _validator(cast(Any, kind)).validate_python(data)
    return made


@cache
def _validator(kind: Any) -> Any:
    """Making one takes milliseconds, so each is made once."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _bad_setting(kind: str, name: str, what: str, known: list[str]) -> InputError:
    return InputError(
        f"setting {name!r} of recipe part {kind!r}: {what}",
        expected=f"the settings {', '.join(known)}",
        remedy="correct the recipe, or rebuild it with hasten optimize",
    )


# --------------------------------------------------------------------------- what the user asks


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Where a checkpoint comes from and what the user allows while loading it."""

    source: str
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the data columns; ``None`` means: find it by name."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """How the model will be used, and therefore how it is measured.

    Where text is written: ``new_tokens`` of an answer and ``prompt_tokens`` in front of it (``None``: as in the data),
    whether prompts go through the tokenizer's ``chat`` template, and a ``prefix`` of every text.
    """

    batch: int = 1
    concurrency: int = 1
    threads: int = 1
    cores: tuple[int, ...] = (0,)
    max_length: int = 512
    seed: int = 0
    new_tokens: int | None = None
    prompt_tokens: int | None = None
    chat: bool = False
    prefix: str = ""


Metric = Literal[
    "quality_drop", "quality", "p50_ms", "p90_ms", "p95_ms", "p99_ms",
    "throughput_per_s", "bytes", "peak_rss_bytes", "energy_j", "speedup",
    "ttft_ms", "ttft_p95_ms", "tpot_ms", "tpot_p95_ms", "tokens_per_s",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Constraint:
    """One bound: ``metric`` ``op`` ``value`` (value in the metric's own unit), and the text it was read from."""

    metric: Metric
    op: Literal["<=", ">="]
    value: float
    text: str

    def slack(self, measured: float) -> float:
        """Distance to the bound in its unit: >= 0 when it holds, negative by how much it is missed."""
        return self.value - measured if self.op == "<=" else measured - self.value

    def holds(self, measured: float) -> bool:
        return self.slack(measured) >= 0


@dataclass(frozen=True, slots=True)
class Budget:
    """All bounds must hold together. An empty budget asks for the fastest at no quality bound."""

    constraints: tuple[Constraint, ...]
    text: str


# --------------------------------------------------------------------------- what is measured


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % bootstrap interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles over ``n`` timed requests, in milliseconds."""

    p50: float
    p90: float
    p95: float
    p99: float
    n: int


@dataclass(frozen=True, slots=True)
class Quality:
    """One task metric in its points (0-100 for rates), with the number of rows it was taken on.

    ``others`` holds the task's further metrics, same scale rules.
    """

    metric: str
    value: float
    n: int
    others: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules per request; ``method`` is ``"rapl"``, ``"nvml"`` or ``"estimated"`` (then ``note`` says how)."""

    joules_per_request: float
    method: Literal["rapl", "nvml", "estimated"]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of one candidate (or the baseline). ``None``: not measured at this stage.

    Where text is written, ``latency_ms`` is of whole answers; ``ttft_ms`` until their first token, ``tpot_ms`` for each
    further one.
    """

    latency_ms: Latency | None = None
    end_to_end_ms: Latency | None = None
    throughput_per_s: float | None = None
    bytes: int | None = None
    peak_rss_bytes: int | None = None
    load_s: float | None = None
    first_call_ms: float | None = None
    quality: Quality | None = None
    energy: Energy | None = None
    precision_ran: str | None = None
    threads: int | None = None
    ttft_ms: Latency | None = None
    tpot_ms: Latency | None = None
    tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the cost model expects of a candidate before it is built in full."""

    latency_ms: float
    build_s: float
    peak_build_bytes: int
    bytes: int


Stage = Literal["preflight", "screen", "contest", "final"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One row of ``trials.jsonl``: one recipe at one stage, passed or rejected, with all that was learnt.

    ``speedup`` and ``quality_drop_pt`` are against the baseline measured in the same breath.
    """

    recipe: Mapping[str, Any]
    recipe_id: str
    label: str
    stage: Stage
    status: Literal["ok", "rejected"]
    elapsed_s: float
    rejected_at: str | None = None
    reason: str | None = None
    figures: Figures = Figures()
    baseline: Figures = Figures()
    speedup: Interval | None = None
    quality_drop_pt: Interval | None = None
    prediction: Prediction | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Flip:
    """A test row whose prediction the chosen model changed."""

    row: int
    text: str
    label: str | None
    baseline: str
    chosen: str


@dataclass(frozen=True, slots=True)
class Host:
    """The machine that measured: nothing in a report means anything without it."""

    cpu: str
    cores: int
    cores_used: tuple[int, ...]
    threads: int
    memory_bytes: int
    instructions: tuple[str, ...]
    os: str
    python: str
    versions: Mapping[str, str]
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SplitSizes:
    """Rows of each split, how they were made, and what was dropped on the way."""

    calibration: int
    selection: int
    test: int
    seed: int
    how: str
    truncated_rows: int = 0
    duplicate_rows: int = 0


Outcome = Literal["met", "not_met", "baseline_best"]


@dataclass(frozen=True, slots=True)
class Measured:
    """A recipe with its final figures, as the verdict quotes it."""

    recipe: Mapping[str, Any]
    recipe_id: str
    label: str
    figures: Figures


@dataclass(frozen=True, slots=True)
class Check:
    """One constraint against the final figures: does the estimate hold, and does its whole interval?"""

    constraint: Constraint
    measured: float | None
    holds: bool
    interval_holds: bool | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer. ``chosen`` is the pick (``met``), the closest miss (``not_met``), the nearest candidate
    (``baseline_best``), or ``None`` when none was measured; ``steps`` say what each step to it bought and cost."""

    outcome: Outcome
    sentence: str
    budget: Budget
    task: str
    source: str
    baseline: Measured
    tuned_baseline: Measured
    chosen: Measured | None
    speedup: Interval | None
    speedup_vs_tuned: Interval | None
    quality_drop: Interval | None
    quality_p_value: float | None
    checks: tuple[Check, ...]
    relaxations: tuple[str, ...]
    flips: tuple[Flip, ...]
    splits: SplitSizes
    host: Host
    elapsed_s: float
    warnings: tuple[str, ...] = ()
    interrupted: bool = False
    steps: tuple[str, ...] = ()
