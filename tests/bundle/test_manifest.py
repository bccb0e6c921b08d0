"""The bundle's own defences: what was altered, lost or forged is named, never believed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hasten.bundle.golden import Golden, check_golden, check_shape, make_golden, read_golden
from hasten.bundle.manifest import (
    FORMAT_VERSION,
    Manifest,
    Measurement,
    check_instructions,
    read_manifest,
    verify_files,
    write_manifest,
)
from hasten.bundle.write import remove_staging, write_bundle
from hasten.records import Figures, Host, InputError, Interval, Latency, Workload
from hasten.tasks.rows import Rows

HOST = Host(
    cpu="test", cores=2, cores_used=(0, 1), threads=2, memory_bytes=1, instructions=("avx2",), os="Linux",
    python="3.11", versions={"numpy": "2"},
)  # fmt: skip
GOLDEN = Golden(texts=("a", "b"), pairs=None, ids=((1, 2), (1, 3, 2)), outputs=((0.5, -0.5), (1.0, 2.0)))


def manifest(**changes: object) -> Manifest:
    made = Manifest(
        task="text-classification", labels=("no", "yes"), family="bert", source="./m", source_hash="0" * 64,
        license=None, recipe={"passes": [], "runtime": {"kind": "torch"}}, recipe_id="abc", recipe_label="torch fp32",
        input_names=("input_ids", "attention_mask"), max_length=128, workload=Workload(threads=2, cores=(0, 1)),
        instructions=("avx2",), precision_ran="fp32", host=HOST,
        measured=Measurement(Figures(latency_ms=Latency(1, 2, 3, 4, 5)), speedup=Interval(2, 1, 3)),
        golden_tolerance=1e-3,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    model = tmp_path / "exported"
    (model / "deep").mkdir(parents=True)
    (model / "weights.bin").write_bytes(b"x" * 1000)
    (model / "deep" / "config.json").write_text("{}")
    target = tmp_path / "out" / "bundle"
    write_bundle(
        target,
        model_folder=model,
        processor_files={"tokenizer.json": b"{}"},
        golden=GOLDEN,
        manifest=manifest(),
    )
    return target


def test_round_trip(bundle: Path) -> None:
    found = read_manifest(bundle)
    verify_files(bundle, found)
    assert found.measured.figures.latency_ms == Latency(1, 2, 3, 4, 5)
    assert found.labels == ("no", "yes")
    assert set(found.files) == {
        "golden.json",
        "tokenizer/tokenizer.json",
        "model/weights.bin",
        "model/deep/config.json",
    }
    assert read_golden(bundle) == GOLDEN


def test_replacing_leaves_one_whole_bundle_and_no_litter(bundle: Path, tmp_path: Path) -> None:
    write_bundle(
        bundle,
        model_folder=tmp_path / "exported",
        processor_files={},
        golden=GOLDEN,
        manifest=manifest(labels=("x", "y")),
    )
    assert read_manifest(bundle).labels == ("x", "y")
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


def test_failed_write_leaves_the_old_bundle(bundle: Path, tmp_path: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(OSError, match="nowhere"):
        write_bundle(bundle, model_folder=tmp_path / "nowhere", processor_files={}, golden=GOLDEN, manifest=manifest())
    assert (bundle / "manifest.json").read_bytes() == before
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


def test_staging_left_by_a_kill_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".bundle-abc").mkdir()
    remove_staging(tmp_path)
    assert list(tmp_path.iterdir()) == []


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["model/weights.bin", "golden.json", "tokenizer/tokenizer.json"])
def test_one_flipped_byte_is_found(bundle: Path, name: str) -> None:
    flip_byte(bundle / name)
    with pytest.raises(InputError, match=name):
        verify_files(bundle, read_manifest(bundle))


def test_every_flipped_byte_of_the_manifest_is_found(bundle: Path) -> None:
    path = bundle / "manifest.json"
    good = path.read_bytes()
    for position in range(0, len(good), 37):
        bad = bytearray(good)
        bad[position] ^= 4
        path.write_bytes(bytes(bad))
        try:
            same = json.loads(bad) == json.loads(good)  # white space may change without meaning
        except ValueError:
            same = False
        if not same:
            with pytest.raises(InputError):
                read_manifest(bundle)


def test_missing_extra_truncated_and_linked_files(bundle: Path) -> None:
    found = read_manifest(bundle)
    (bundle / "extra.txt").write_text("hello")
    with pytest.raises(InputError, match="not listed"):
        verify_files(bundle, found)
    (bundle / "extra.txt").unlink()
    weights = bundle / "model" / "weights.bin"
    weights.write_bytes(b"x" * 999)
    with pytest.raises(InputError, match="999 bytes"):
        verify_files(bundle, found)
    weights.unlink()
    with pytest.raises(InputError, match="missing"):
        verify_files(bundle, found)
    weights.symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="symbolic link"):
        verify_files(bundle, found)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "c:\\x"])
def test_names_outside_the_bundle(bundle: Path, name: str) -> None:
    found = read_manifest(bundle)
    with pytest.raises(InputError, match="outside"):
        verify_files(bundle, replace(found, files={name: next(iter(found.files.values()))}))


def test_newer_format_says_upgrade(bundle: Path) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    data["format_version"] = FORMAT_VERSION + 1
    (bundle / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="upgrade hasten"):
        read_manifest(bundle)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format_version": "one"}', "\x00\x01"])
def test_unreadable_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError):
        read_manifest(tmp_path)


def test_lying_shape_is_refused_even_with_a_right_hash(bundle: Path) -> None:
    wrong = replace(read_manifest(bundle), max_length="many")  # type: ignore[arg-type]
    write_manifest(bundle, wrong)
    with pytest.raises(InputError, match="max_length"):
        read_manifest(bundle)


def test_host_without_the_instructions() -> None:
    check_instructions(manifest(), frozenset({"avx2", "sse4_2"}))
    with pytest.raises(InputError, match="avx512_vnni"):
        check_instructions(manifest(instructions=("avx2", "avx512_vnni")), frozenset({"avx2"}))


def test_golden_difference_is_relative_to_scale() -> None:
    batches = [{"input_ids": np.array([ids])} for ids in GOLDEN.ids]
    outputs = dict(zip(GOLDEN.ids, GOLDEN.outputs, strict=True))

    def run(batch: dict[str, np.ndarray], nudge: float = 0.0) -> np.ndarray:
        return np.array([outputs[tuple(batch["input_ids"][0])]]) + nudge

    assert check_golden(GOLDEN, run, batches=batches, tolerance=1e-6) == 0.0
    with pytest.raises(InputError, match="golden outputs differ"):
        check_golden(GOLDEN, lambda b: run(b, 0.1), batches=batches, tolerance=0.01)
    with pytest.raises(InputError, match="golden outputs differ"):
        check_golden(GOLDEN, lambda b: run(b, np.nan), batches=batches, tolerance=0.01)
    other = [{"input_ids": np.array([[9, 9]])}, batches[1]]
    with pytest.raises(InputError, match="other numbers"):
        check_golden(GOLDEN, run, batches=other, tolerance=1e-6)


def test_make_golden_keeps_what_ran() -> None:
    batches = [{"input_ids": np.array([[1, 2]])}]
    rows = Rows(("t",), None, ("yes",), "rows.csv", "0")
    made = make_golden(rows, batches=batches, outputs=[np.array([[0.5, 1.0]])])
    assert made == Golden(("t",), None, ((1, 2),), ((0.5, 1.0),))


@pytest.mark.parametrize(
    "lie",
    [
        {"max_length": 0},
        {"workload": Workload(batch=0)},
        {"golden_tolerance": float("nan")},
        {"golden_tolerance": float("inf")},
        {"labels": ()},
        {"labels": ("yes", "yes")},
        {"task": "feature-extraction"},
        {"input_names": ("bogus",)},
        {"input_names": ("input_ids",)},
        {"input_names": ("input_ids", "pixel_values")},
        {"recipe": {}},
        {"format_version": -5},
    ],
    ids=str,
)
def test_a_manifest_that_lies_is_refused_though_its_hash_is_right(bundle: Path, lie: dict[str, object]) -> None:
    write_manifest(bundle, manifest(**lie))
    with pytest.raises(InputError):
        read_manifest(bundle)


def test_a_manifest_nested_beyond_reason_is_damaged(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match="not readable"):
        read_manifest(bundle)


@pytest.mark.parametrize("labels", [("yes",), ("a", "b", "c")])
def test_golden_outputs_must_fit_the_labels(labels: tuple[str, ...]) -> None:
    check_shape(GOLDEN, labels=("no", "yes"))
    with pytest.raises(InputError, match="for"):
        check_shape(GOLDEN, labels=labels)
    with pytest.raises(InputError):
        check_shape(Golden((), None, (), ()), labels=("no", "yes"))
