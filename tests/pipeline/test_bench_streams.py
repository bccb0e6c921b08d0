"""``hasten bench --generate``: what a model writes on every runtime, from Python and from the command line."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles_for_tests import language_bundle
from own_core import own_core
from task_models import save_task_model
from tiny_models import language_model, save_tokenizer

import hasten
from hasten.bundle.answers import Answers
from hasten.cli import main
from hasten.pipeline.prompts import Prompts, vocabulary
from hasten.pipeline.streams import parse_streams
from hasten.records import InputError
from hasten.report.streams_terminal import show_streams

SHORT: dict[str, Any] = {"input_tokens": 12, "output_tokens": 4, "streams": (1, 3), "rounds": 1, "requests": 2}
FLAGS = ("--input-tokens", "12", "--output-tokens", "4", "--streams", "1,3", "--rounds", "1", "--requests", "2")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with 66 positions."""
    folder = tmp_path_factory.mktemp("decoder") / "model"
    language_model("llama").save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go: afterwards nothing may be there."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.slow
def test_every_runtime_and_precision_with_all_its_figures(decoder: Path, scratch: Path) -> None:
    result = hasten.bench_streams(
        decoder, runtimes=("torch", "onnxruntime", "openvino", "executorch"), cores=own_core(), **SHORT
    )
    data = json.loads(json.dumps(result.to_dict()))
    by_name = {f"{s['runtime']} {s['config']['precision'] if s['config'] else ''}".strip(): s for s in data["sides"]}
    assert {"torch fp32", "onnxruntime int8-dynamic", "openvino int8-weights", "executorch"} <= by_name.keys()
    assert by_name["executorch"]["refused"] == "executorch does not write text"
    assert by_name["executorch"]["streams"] == []
    for name, side in by_name.items():
        if name == "executorch":
            continue
        assert side["refused"] is None, name
        assert [f["streams"] for f in side["streams"]] == [1, 3]
        assert side["load_s"] > 0
        for figures in side["streams"]:
            check_figures(figures)
    weights = {n: by_name[n]["streams"][0]["step_bytes"] for n in ("torch fp32", "openvino int8-weights")}
    assert weights["openvino int8-weights"] < weights["torch fp32"]
    assert list(scratch.iterdir()) == []


def check_figures(figures: dict[str, Any]) -> None:
    """Rates and times of the same answers say the same."""
    count = figures["streams"]
    for name in ("prefill_tok_s", "decode_tok_s", "ttft_ms", "tpot_ms", "gb_s"):
        assert 0 < figures[name]["low"] <= figures[name]["estimate"] <= figures[name]["high"]
    assert figures["answers"] == 2
    assert figures["peak_rss_bytes"] >= figures["rss_bytes"] > 1e6
    by_time = figures["step_bytes"] / figures["tpot_ms"]["estimate"] / 1e6
    assert figures["gb_s"]["estimate"] == pytest.approx(by_time)
    slowest = count * 1e3 / figures["tpot_ms"]["high"], count * 12e3 / figures["ttft_ms"]["high"]
    assert figures["decode_tok_s"]["estimate"] >= slowest[0]
    assert figures["prefill_tok_s"]["estimate"] >= slowest[1]
    assert 0 < figures["share_of_peak"] < 10


def test_a_bundle_runs_as_it_was_built(tmp_path: Path) -> None:
    model = save_task_model(tmp_path / "model", "text-generation")
    bundle = language_bundle(model, tmp_path / "bundle", task="text-generation", answers=Answers(most=4, timed=4))
    result = hasten.bench_streams(bundle, runtimes=("torch", "openvino"), cores=own_core(), **SHORT)
    own, other = result.sides
    assert [f.streams for f in own.streams] == [1, 3]
    assert own.streams[0].gb_s is not None
    assert (other.runtime, other.refused) == ("openvino", "the bundle is one for torch")
    for settings in ({"techniques": ("int8",)}, {"task": "text-generation"}):
        with pytest.raises(InputError, match="with a bundle"):
            hasten.bench_streams(bundle, **SHORT, **settings)
    with pytest.raises(InputError, match="nothing could be measured: openvino: the bundle is one for torch"):
        hasten.bench_streams(bundle, runtimes=("openvino",), **SHORT)


@pytest.mark.parametrize("name", ["model/generation.json", "tokenizer/tokenizer.json"])
def test_a_damaged_bundle_is_a_sentence(name: str, tmp_path: Path) -> None:
    model = save_task_model(tmp_path / "model", "text-generation")
    bundle = language_bundle(model, tmp_path / "bundle", task="text-generation", answers=Answers(most=4, timed=4))
    (bundle / name).write_bytes((bundle / name).read_bytes()[:-9])
    with pytest.raises(InputError, match=rf"{name} has \d+ bytes, the manifest says"):
        hasten.bench_streams(bundle, runtimes=("torch",), **SHORT)


def test_a_bundle_that_answers_nothing_is_refused(tmp_path: Path) -> None:
    model = save_task_model(tmp_path / "model", "language-modeling")
    bundle = language_bundle(model, tmp_path / "bundle")
    with pytest.raises(InputError, match="bundle for language-modeling, which does not write"):
        hasten.bench_streams(bundle, **SHORT)


def test_an_encoder_decoder_writes_too(tmp_path: Path) -> None:
    model = save_task_model(tmp_path / "model", "summarization")
    result = hasten.bench_streams(model, runtimes=("torch",), techniques=("int8-cache",), cores=own_core(), **SHORT)
    assert result.task == "summarization"
    assert any(side.streams for side in result.sides)


@pytest.mark.real
def test_a_gguf_file(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from interchange_models import tiny, words

    from hasten.models.interchange.gguf_writer import write_gguf

    path = tmp_path / "tiny.gguf"
    write_gguf(tiny("llama"), words(tmp_path), path, kind="f32", name="tiny")
    result = hasten.bench_streams(path, runtimes=("torch",), techniques=("int8-cache",), cores=own_core(), **SHORT)
    assert result.sides[0].streams[1].streams == 3


def test_techniques_narrow_and_who_has_none_is_refused(decoder: Path) -> None:
    result = hasten.bench_streams(
        decoder, runtimes=("torch", "onnxruntime"), techniques=("int8-cache",), cores=own_core(), **SHORT
    )
    assert [(s.runtime, (s.config or {}).get("kv_cache")) for s in result.sides] == [
        ("torch", "int8"), ("onnxruntime", None),
    ]  # fmt: skip
    assert result.sides[1].refused == "onnxruntime offers none of int8-cache here"


def test_texts_of_ones_own(decoder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("prompt\nw1 w2 w3\nw4 w5\n")
    said: list[str] = []

    class Listening:
        def line(self, text: str) -> None:
            said.append(text)

        def stage(self, text: str, *, done: float, total: float, left_s: float | None) -> None:
            assert left_s is None or left_s >= 0
            assert 0 <= done <= total
            said.append(text)

    result = hasten.bench_streams(
        decoder, runtimes=("torch",), techniques=("int8-cache",), data=rows, cores=own_core(), reporter=Listening(),
        **{**SHORT, "streams": "2"},
    )  # fmt: skip
    assert result.prompts == str(rows)
    assert any("2 streams" in text for text in said)
    rows.write_text("prompt\n")
    with pytest.raises(InputError):
        hasten.bench_streams(decoder, runtimes=("torch",), data=rows, **SHORT)


# ------------------------------------------------------------------ prompts


def test_prompts_are_of_the_models_own_words(decoder: Path) -> None:
    files = {"tokenizer.json": (decoder / "tokenizer.json").read_bytes()}
    ids = vocabulary(files, words=None)
    assert set(ids) == set(range(65 + 1)) - {1, 3, 4, 5}, "the four that the tokenizer calls special are left out"
    assert vocabulary(files, words=10).max() == 9
    with pytest.raises(InputError, match="that the model has a row for"):
        vocabulary(files, words=0)
    made = Prompts(ids, True, 7, 3, ("input_ids", "attention_mask"))
    assert made(2, 0)["input_ids"].shape == (2, 7)
    assert set(made(2, 0)) == {"input_ids", "attention_mask"}
    assert np.array_equal(made(2, 1)["input_ids"], made(2, 1)["input_ids"])
    assert not np.array_equal(made(2, 0)["input_ids"], made(2, 1)["input_ids"])


def test_texts_are_read_one_after_the_other_and_from_the_beginning_again() -> None:
    made = Prompts(np.arange(10), False, 3, 0, ("input_ids",))
    assert made(2, 0)["input_ids"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert made(2, 1)["input_ids"].tolist() == [[6, 7, 8], [9, 0, 1]]


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize("given", ["0", "1,x", "", "1,-2", (), (0,), "1,1000000000", "9" * 5000])
def test_numbers_of_streams(given: Any) -> None:
    assert parse_streams("16, 1,1") == (1, 16)
    with pytest.raises(InputError, match="--streams"):
        parse_streams(given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input_tokens": 0}, "--input-tokens 0"),
        ({"output_tokens": 1}, "the first one comes with the prompt"),
        ({"input_tokens": 10**12}, "--input-tokens 1000000000000"),
        ({"rounds": 0}, "--rounds 0"),
        ({"seed": -1}, "--seed -1"),
        ({"requests": 0}, "--requests 0"),
        ({"runtimes": ("torhc",)}, "did you mean torch"),
        ({"runtimes": ()}, "--runtimes without a name"),
        ({"techniques": ()}, "--techniques without a name"),
        ({"techniques": ("int9",)}, "unknown technique 'int9'"),
        ({"threads": 99}, "--threads 99"),
        ({"task": "text-classification"}, "--task text-classification with --generate"),
        ({"task": "speech-recognition"}, "--task speech-recognition with --generate"),
        ({"input_tokens": 60, "output_tokens": 10}, "at most 66 tokens together"),
        ({"runtimes": ("executorch",)}, "nothing could be measured: executorch"),
    ],
)
def test_bad_input_is_explained(settings: dict[str, Any], message: str, decoder: Path, scratch: Path) -> None:
    with pytest.raises(InputError, match=message):
        hasten.bench_streams(decoder, **{**SHORT, **settings})
    assert list(scratch.iterdir()) == []


def test_an_encoder_is_told_what_fits(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="does not write for --generate") as refused:
        hasten.bench_streams(checkpoint("bert"), **SHORT)
    assert "ForCausalLM" in refused.value.expected
    assert "text-classification" in refused.value.remedy


def test_an_interruption_leaves_nothing(decoder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hasten.pipeline import streams

    def interrupted(*_given: Any, **_named: Any) -> None:
        assert list(scratch.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(streams, "race", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hasten.bench_streams(decoder, runtimes=("torch",), techniques=("int8-cache",), **SHORT)
    assert list(scratch.iterdir()) == []


# ------------------------------------------------------------------ the command line


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """(exit code, stdout, stderr) of the program in this process."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["hasten", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_the_verb_gives_json_or_a_table(decoder: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    asked = ("bench", decoder, "--generate", "--runtimes", "torch", "--techniques", "int8-cache", "--cores", own_core())
    code, out, err = here(*asked, *FLAGS, "--json")
    assert code == 0, err
    data = json.loads(out)
    assert {"prefill_tok_s", "decode_tok_s", "ttft_ms", "tpot_ms", "peak_rss_bytes", "gb_s"} <= set(
        data["sides"][0]["streams"][0]
    )
    assert "a first answer" in err
    code, out, err = here(*asked, *FLAGS)
    assert code == 0, err
    assert "decode" in out
    assert "95 % intervals" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--generate", "--streams", "0"), "--streams 0"),
        (("--generate", "--streams", "many"), "--streams many"),
        (("--generate", "--runtimes", "torhc"), "did you mean torch"),
        (("--generate", "--input-tokens", "4000"), "at most 66 tokens together"),
        (("--generate", "--vs", "other"), "--vs with --generate"),
        (("--generate", "--new-tokens", "9"), "--new-tokens with --generate"),
        (("--streams", "1", "--data", "x.csv"), "--streams without --generate"),
        ((), "bench without --data"),
    ],
)
def test_the_verb_refuses(
    arguments: tuple[str, ...], message: str, decoder: Path, here: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = here("bench", decoder, *arguments, "--json")
    assert code == 2, err
    assert message in json.loads(out)["error"]
    assert "to do:" in err


def test_the_table_shows_refusals_and_what_is_not_known() -> None:
    from rich.console import Console

    span = {"estimate": 12.34, "low": 12.0, "high": 13.0}
    figures = {
        "streams": 16, "prefill_tok_s": span, "decode_tok_s": span, "ttft_ms": span, "tpot_ms": span, "answers": 2,
        "peak_rss_bytes": 5e8, "rss_bytes": 4e8, "step_bytes": None, "gb_s": None, "share_of_peak": None,
    }  # fmt: skip
    sides = [
        {
            "runtime": "torch",
            "label": "fp32",
            "streams": [figures],
            "refused": {"32": "memory: no room"},
            "load_s": 1.0,
        },
        {"runtime": "native", "label": "", "streams": [], "refused": "native does not write text", "load_s": None},
    ]
    console = Console(record=True, width=80, file=io.StringIO())  # a pipe: no figure is cut
    show_streams(
        {"model": "m", "input_tokens": 5, "output_tokens": 4, "sides": sides, "peak_gb_s": None, "together": False,
         "prompts": "random", "host": {"cpu": "a CPU", "threads": 2}, "warnings": ["busy"]},
        console=console,
    )  # fmt: skip
    text = console.export_text()
    for part in ("12.3 (12.0-13.0)", "500 MB", "native: refused: native does not write text", "warning: busy",
                 "torch fp32, 32 streams: refused: memory: no room", "one after the other"):  # fmt: skip
        assert part in text
