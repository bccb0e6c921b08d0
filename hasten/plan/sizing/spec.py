"""What is to be deployed: the load, the bounds and what may be used.

Takes options (of the command line, or of a TOML file of the same names), gives a :class:`SizingRequest` in plain units.
Bounds are hard unless they stand in ``prefer``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from hasten.plan.bounds import ENERGY_UNITS, SIZE_UNITS, TIME_UNITS, Bound, Kind, Metrics, read_bounds
from hasten.plan.sizing.economics import CARBON_G_KWH, HEADROOM, IDLE_SHARE, PUE
from hasten.plan.sizing.hardware import PRECISIONS
from hasten.plan.sizing.tables import first_fault, read_tables
from hasten.records import InputError, read_as

Setting = Literal["cloud", "enterprise", "edge"]
_D, _E, _S = "decoder", "encoder", "encoder-decoder"
# The kinds of model that can do a task; the first is what the catalogue offers when no model is named.
TASKS: Mapping[str, tuple[str, ...]] = {
    "chat": (_D, _S), "completion": (_D, _S), "code": (_D, _S), "extraction": (_D, _S, _E), "summarization": (_D, _S),
    "translation": (_S, _D), "speech-recognition": (_S,), "text-classification": (_E, _D, _S),
    "token-classification": (_E, _D, _S), "feature-extraction": (_E, _D), "question-answering": (_E, _D, _S),
    "sentence-similarity": (_E, _D),
}  # fmt: skip
_MONEY = {"": 1.0, "usd": 1.0, "$": 1.0}
_LATENCY = Kind(TIME_UNITS, "<=")
_SLO = Metrics(
    {
        "ttft_ms": _LATENCY,  # time to the first token
        "tpot_ms": _LATENCY,  # time for each token after it
        "latency_ms": _LATENCY,  # of the whole request
        "usd_per_month": Kind(_MONEY, "<="),
        "usd_per_request": Kind(_MONEY, "<="),
        "usd_per_mtok": Kind(_MONEY, "<="),
        "energy_j": Kind(ENERGY_UNITS, "<="),
        "co2_kg_per_month": Kind({"": 1.0, "kg": 1.0, "t": 1000.0}, "<="),
        "memory_bytes": Kind(SIZE_UNITS, "<="),
        "machines": Kind({"": 1.0}, "<="),
    },
    {"ttft": "ttft_ms", "tpot": "tpot_ms", "itl_ms": "tpot_ms", "latency": "latency_ms", "e2e_ms": "latency_ms",
     "memory": "memory_bytes", "usd": "usd_per_month", "energy": "energy_j"},
    title="slo", example="ttft_ms<=500",
)  # fmt: skip
_SCORES = ("mmlu", "mmlu_pro", "mmlu_cloze", "gsm8k", "hellaswag", "humaneval", "glue", "mteb", "sst2", "mnli")
_POINTS = {"": 1.0, "%": 1.0, "pt": 1.0}
_QUALITY = Metrics(
    {
        **{name: Kind(_POINTS, ">=", low=0.0, high=100.0, what="a score") for name in _SCORES},
        "wer": Kind(_POINTS, "<=", low=0.0, high=100.0, what="an error rate"),
    },
    {}, title="quality", example="mmlu>=60",
)  # fmt: skip
SCORES = frozenset(_QUALITY.kinds)
_PREFER = Metrics(
    {**_SLO.kinds, **_QUALITY.kinds}, {**_SLO.names, **_QUALITY.names}, title="prefer", example="tpot_ms<=20"
)
FILES = ("hardware_file", "models_file", "prices_file", "trials")
_COUNT = re.compile(r"\s*([\d.]+(?:[eE][+-]?\d+)?)\s*([kKmMbBgGtT]?)\s*")
_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


@dataclass(frozen=True, slots=True)
class SizingRequest:
    """Rates in requests a second, lengths in tokens. ``models`` and ``parameters`` name what may be deployed (neither:
    the catalogue), ``mean_share`` of the rate is asked on average (machines are for the rate, a request's money and
    energy for the mean), ``setting`` orders the answers, ``percentile`` is the share of requests that a latency bound
    is for.
    ``length_scv`` is the squared coefficient of variation of the lengths, 0 when all are alike. ``network_ms`` is the
    round trip to what is not on the user's own device: without it 25, 1 within an enterprise. On an edge device one
    user asks, ``edge_requests_per_h`` times an hour. ``bits_cost`` are points that a precision costs."""

    task: str
    requests_per_s: float = 1.0
    input_tokens: float = 512.0
    output_tokens: float = 128.0
    bounds: tuple[Bound, ...] = ()
    preferred: tuple[Bound, ...] = ()
    quality: tuple[Bound, ...] = ()
    hardware: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    parameters: tuple[float, ...] = ()
    precisions: tuple[str, ...] = ("bf16", "fp8", "int8", "int4")
    devices: tuple[int, ...] = (1, 2, 4, 8)
    tokens_trained: float | None = None
    setting: Setting = "cloud"
    privacy: bool = False
    offline: bool = False
    percentile: float = 95.0
    mean_share: float = 1.0
    headroom: float = HEADROOM.value
    length_scv: float = 0.5
    network_ms: float | None = None
    cache_bits: int = 16
    draft: str | None = None
    drafted: int = 4
    acceptance: float = 0.7
    api: tuple[str, ...] = ()
    edge_requests_per_h: float = 60.0
    pue: float = PUE.value
    carbon_g_kwh: float = CARBON_G_KWH.value
    idle_share: float = IDLE_SHARE.value
    bits_cost: Mapping[str, float] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of model that can do the task, the usual one first."""
        return TASKS[self.task]

    @property
    def context(self) -> float:
        """Tokens at a request's end, for a model that reads and writes."""
        return self.input_tokens + self.output_tokens

    @property
    def share(self) -> float:
        """The percentile as a share."""
        return self.percentile / 100.0

    @property
    def round_trip_ms(self) -> float:
        """To what is not on the user's own device."""
        if self.network_ms is not None:
            return self.network_ms
        return _LAN_MS if self.setting == "enterprise" else _CLOUD_MS


_CLOUD_MS, _LAN_MS = 25.0, 1.0


def make_request(
    *, task: str, slo: str = "", prefer: str = "", quality: str = "", tokens_trained: str | float | None = None,
    params: Any = (), **options: Any,
) -> SizingRequest:  # fmt: skip
    """A checked request out of texts and numbers. Raises InputError that names what is wrong."""
    for name, value in (("task", task), ("slo", slo), ("prefer", prefer), ("quality", quality)):
        if not isinstance(value, str):
            raise InputError(f"{name} is {value!r}", expected="a text", remedy='write it as in slo = "tpot_ms<=40"')
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else "name one of them"
        raise InputError(f"unknown task {task!r}", expected=f"one of {', '.join(TASKS)}", remedy=hint)
    given = {name: value for name, value in options.items() if value is not None}
    if TASKS[task][0] == _E:
        given.setdefault("precisions", ("fp32", "bf16", "int8"))
    data = {
        **given, "task": task, "bounds": read_bounds(slo, _SLO), "preferred": read_bounds(prefer, _PREFER),
        "quality": read_bounds(quality, _QUALITY),
        "tokens_trained": None if tokens_trained is None else read_count(tokens_trained, "tokens_trained"),
        "parameters": tuple(read_count(one, "params") for one in _several(params)),
    }  # fmt: skip
    request = _checked(data, given)
    _check_ranges(request)
    _check_together(request, given)
    return request


def read_spec(path: str | Path) -> dict[str, Any]:
    """A TOML file whose keys are the options' names, with ``-`` or ``_``. Raises InputError for unknown keys."""
    tables = read_tables(Path(path))
    found = {key.replace("-", "_"): value for key, value in tables.items()}
    if len(found) < len(tables):
        twice = next(key for key in found if key.replace("_", "-") in tables and key in tables)
        raise InputError(f"{path}: {twice!r} is there twice", expected="each key once", remedy="remove one of them")
    known = {f.name for f in fields(SizingRequest)} - {"bounds", "preferred", "parameters"}
    known |= {"slo", "prefer", "params", *FILES}
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise InputError(
                f"{path}: unknown key {key!r}", expected=f"keys of {', '.join(sorted(known))}",
                remedy=f"did you mean {near[0]}?" if near else "remove it",
            )  # fmt: skip
    return found


def read_count(text: str | float, name: str) -> float:
    """7B, 350M, 15T, 1e9: a number above zero. Raises InputError."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        value = float(min(text, 10**30))
    else:
        match = _COUNT.fullmatch(str(text))
        try:
            value = float(match[1]) * _FACTORS[match[2].lower()] if match else 0.0
        except ValueError:
            value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(f"{name} is {text!r}", expected="a number such as 350M, 7B or 15T", remedy="correct it")
    return value


def relaxed(request: SizingRequest, metric: str, value: float) -> SizingRequest:
    """The same with another bound on ``metric``."""

    def changed(bounds: tuple[Bound, ...]) -> tuple[Bound, ...]:
        return tuple(
            replace(b, value=value, text=f"{metric}{b.op}{value:g}") if b.metric == metric else b for b in bounds
        )

    return replace(request, bounds=changed(request.bounds), quality=changed(request.quality))


def _several(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _is_bool(value: Any) -> bool:
    return any(isinstance(one, bool) for one in (value if isinstance(value, list | tuple) else (value,)))


_LISTS = ("hardware", "models", "precisions", "devices", "api")
_TEXTS = ("bounds", "preferred", "quality", "parameters")  # given by other names, as texts


def _checked(data: Mapping[str, Any], given: Mapping[str, Any]) -> SizingRequest:
    known = {f.name for f in fields(SizingRequest)} - set(_TEXTS)
    unknown = sorted(set(given) - known)
    if unknown:
        raise InputError(f"unknown option {unknown[0]!r}", expected="an option of hasten size", remedy="remove it")
    plain = {key: _several(value) if key in _LISTS else value for key, value in data.items()}
    empty = [key for key in _LISTS if key in given and (not plain[key] or "" in plain[key])]
    if empty:
        raise InputError(f"{empty[0]} is empty", expected="at least one, or leave it out", remedy="name one")
    if "precisions" in plain:
        plain["precisions"] = tuple(str(one).lower() for one in plain["precisions"])
    numbers = [key for key, value in plain.items() if key not in ("privacy", "offline") and _is_bool(value)]
    if numbers:
        raise InputError(f"{numbers[0]} is {plain[numbers[0]]}", expected="a number or a text", remedy="correct it")
    try:
        return read_as(SizingRequest, plain)
    except ValueError as error:
        raise InputError(first_fault(error), expected="a value of the right kind", remedy="correct it") from error


_RANGES = {
    "requests_per_s": (1e-9, 1e7), "input_tokens": (1, 1e8), "output_tokens": (0, 1e7), "percentile": (50, 99.99),
    "headroom": (0, 0.95), "mean_share": (0.001, 1), "network_ms": (0, 1e5), "drafted": (1, 64), "acceptance": (0, 1),
    "pue": (1, 5),
    "carbon_g_kwh": (0, 2000), "idle_share": (0, 1), "edge_requests_per_h": (1e-6, 1e6), "cache_bits": (2, 32),
    "length_scv": (0, 100),
}  # fmt: skip


def _check_ranges(request: SizingRequest) -> None:
    for name, (low, high) in _RANGES.items():
        value = getattr(request, name)
        if value is not None and not low <= value <= high:
            raise InputError(f"{name} is {value:g}", expected=f"from {low:g} to {high:g}", remedy="correct it")
    if not all(0 <= cost <= 100 for cost in request.bits_cost.values()):
        raise InputError(f"bits_cost {dict(request.bits_cost)}", expected="points from 0 to 100", remedy="correct it")
    for one in (*request.precisions, *request.bits_cost):
        if one not in PRECISIONS:
            raise InputError(
                f"unknown precision {one!r}", expected=f"some of {', '.join(PRECISIONS)}", remedy="correct it"
            )
    if any(n < 1 or n > 64 for n in request.devices):
        raise InputError(f"devices {request.devices}", expected="numbers from 1 to 64", remedy="correct them")


def _check_together(request: SizingRequest, given: Mapping[str, Any]) -> None:
    """What one thing makes of another."""
    misplaced = [b for b in (*request.bounds, *request.preferred) if b.metric in ("ttft_ms", "tpot_ms")]
    if misplaced and request.kinds[0] == _E and not (request.models or request.parameters):
        raise InputError(
            f"{misplaced[0].text} for {request.task}", expected="latency_ms: such a model gives no tokens",
            remedy="bound latency_ms",
        )  # fmt: skip
    if request.draft is None and {"drafted", "acceptance"} & set(given):
        raise InputError("drafted or acceptance without a draft", expected="--draft MODEL", remedy="name the draft")
