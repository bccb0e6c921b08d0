"""``hasten size``: reads specification, catalogues and measurements, and hands them to the planning room.

Takes what a user gives, gives a :class:`Sizing`. The only part of right-sizing that opens files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hasten.ledger import read_rows
from hasten.pipeline.progress import Reporter, Silent
from hasten.plan.sizing import points
from hasten.plan.sizing.advice import specialist_advice
from hasten.plan.sizing.answer import Checked, Sizing, answer
from hasten.plan.sizing.config_json import shape_of_config, shape_of_folder
from hasten.plan.sizing.hardware import Device, read_devices
from hasten.plan.sizing.prices import find_price, read_prices
from hasten.plan.sizing.shapes import ModelShape, read_models
from hasten.plan.sizing.spec import FILES, SizingRequest, make_request, read_spec
from hasten.records import InputError, MissingDependency, Trial

_USUAL_HOST = "cpu-vnni-4"


def size(
    *, spec: str | Path | None = None, this_host: bool = False, again: bool = False, reporter: Reporter | None = None,
    **options: Any,
) -> Sizing:  # fmt: skip
    """What to deploy, where, at what cost.

    ``options`` are those of the command line (task, requests_per_s, input_tokens, output_tokens, slo, prefer, quality,
    hardware, models, params, tokens_trained, ...) and stand before those of the TOML file ``spec``. ``this_host`` times
    this machine (``again``: even where it was timed before) and adds it to the hardware.

    Raises InputError for what cannot be read, for unknown names and for values out of range.
    """
    say = reporter or Silent()
    _require_scipy()
    spec = _file("spec", spec)
    given = {**(read_spec(spec) if spec is not None else {}), **{k: v for k, v in options.items() if v is not None}}
    files = {name: _file(name, given.pop(name, None)) for name in FILES[:-1]}
    paths = given.pop(FILES[-1], None)
    if "task" not in given:
        raise InputError("no task", expected="--task, or task in the specification", remedy="name one, such as chat")
    request, models = _with_own_models(make_request(**given), read_models(files["models_file"]))
    devices = read_devices(files["hardware_file"])
    own_host: Device = devices[_USUAL_HOST]
    checked: tuple[Checked, ...] = ()
    if this_host:
        own_host, checked = _this_host(again=again, say=say)
        devices = {**devices, own_host.name: own_host}
        request = replace(request, hardware=(*request.hardware, own_host.name))
    known = read_prices(files["prices_file"])
    prices = [find_price(name, known) for name in request.api]
    trials = _trials(paths)
    latency_ms = next((b.value for b in request.bounds if b.metric == "latency_ms"), None)
    found = answer(
        request, models=models, devices=devices, prices=prices, checked=checked, notes=points.notes(trials, latency_ms),
        tell=lambda done, total: say.stage("judging what could be deployed", done=done, total=total, left_s=None),
    )  # fmt: skip
    own = points.specialist(trials)
    if own is None:
        return found
    ms, quality, trial = own
    more = specialist_advice(
        found.recommendation, name=trial.label, score=f"quality {quality:.1f}", latency_ms=ms,
        device=own_host, prices=prices,
    )  # fmt: skip
    return replace(found, measured_notes=(*found.measured_notes, *more))


def _require_scipy() -> None:
    from importlib.util import find_spec

    if find_spec("scipy") is None:
        raise MissingDependency("scipy", extra="optimize")


def _file(name: str, value: Any) -> str | Path | None:
    if value is None or isinstance(value, str | Path):
        return value
    raise InputError(f"{name} is {value!r}", expected="a path", remedy="give the file as a text")


# ------------------------------------------------------------------ models


def _with_own_models(
    request: SizingRequest, models: Mapping[str, ModelShape]
) -> tuple[SizingRequest, Mapping[str, ModelShape]]:
    """Folders, config.json files and hub ids among the named models join the catalogue under their own names."""
    known = {key for m in models.values() for key in (m.name, m.hub.lower(), m.title.lower()) if key}
    own: dict[str, ModelShape] = {}
    names = []
    for name in request.models:
        if name.strip().lower() in known:
            names.append(name)
            continue
        shape = _read_shape(name)
        if shape is None:
            names.append(name)  # find_model says what is near it
            continue
        own[name] = replace(shape, name=name, hub=shape.hub or name)
        names.append(name)
    return replace(request, models=tuple(names)), {**models, **own}


def _read_shape(name: str) -> ModelShape | None:
    try:
        path = Path(name).expanduser()
        if path.exists():
            return shape_of_folder(path)
    except (OSError, RuntimeError, ValueError) as error:  # a name that no path can be
        raise InputError(
            f"models: {name[:80]!r}: {error}", expected="a name, hub id or folder", remedy="correct it"
        ) from error
    if name.count("/") != 1 or name.startswith((".", "/")):
        return None
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        return None
    import json

    try:
        found = hf_hub_download(name, "config.json")
    except Exception as error:  # the hub's library raises a dozen kinds
        raise InputError(
            f"no config.json of {name}: {type(error).__name__}", expected="a model of the hub, and a network",
            remedy="give a folder with its config.json, or --params",
        ) from error  # fmt: skip
    return replace(shape_of_config(json.loads(Path(found).read_text()), name=name.lower(), source=name), hub=name)


# ------------------------------------------------------------------ measurements


def _this_host(*, again: bool, say: Reporter) -> tuple[Device, tuple[Checked, ...]]:
    """This machine as a device, and published shapes that were timed but not fitted beside their predictions."""
    from hasten.pipeline.this_host import held_out, measured_host, shape_of

    found = measured_host(again=again, tell=lambda what, done, of: say.stage(what, done=done, total=of, left_s=None))
    checked = []
    for point in held_out(found):
        name = shape_of(*point["proportions"], vocab=point["vocab"]).title
        what = f"{name} {point['precision']}, {point['rows']} x {point['tokens']} tokens"
        checked.append(Checked(what, "ms", point["ms"], point["predicted_ms"]))
        if point["memory"]:
            checked.append(Checked(what, "MB", point["peak_rss_bytes"] / 1e6, point["predicted_bytes"] / 1e6))
    return found.device, tuple(checked)


def _trials(paths: Any) -> tuple[Trial, ...]:
    """Of ledgers, or of the folders of runs. Raises InputError for what is no ledger."""
    several = [paths] if isinstance(paths, str | Path) else paths or ()
    if not isinstance(several, list | tuple) or not all(isinstance(one, str | Path) for one in several):
        raise InputError(f"trials is {paths!r}", expected="a path or a list of them", remedy="give folders of runs")
    found: list[Trial] = []
    for one in several:
        path = Path(one).expanduser()
        path = path / "trials.jsonl" if path.is_dir() else path
        if not path.is_file():
            raise InputError(
                f"no file {path}",
                expected="a run's folder or its trials.jsonl",
                remedy="give the folder that hasten optimize wrote",
            )
        trials = read_rows(path).trials()
        if not trials:
            raise InputError(f"{path} holds no trial", expected="a run's trials.jsonl", remedy="give another file")
        found += trials
    return tuple(found)
