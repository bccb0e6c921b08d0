"""Recordings in their usual forms, and the features that Whisper hears."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hasten.records import Columns, InputError
from hasten.tasks.audio_rows import read_recordings
from hasten.tasks.log_mel import log_mel_of
from hasten.tasks.processor import open_processor
from hasten.tasks.speech import SpeechProcessor, opened

soundfile = pytest.importorskip("soundfile")


def wav(seconds: float = 0.5, *, rate: int = 16000, channels: int = 1, seed: int = 0) -> bytes:
    """A tone with noise."""
    time = np.arange(int(seconds * rate)) / rate
    samples = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.01 * np.random.default_rng(seed).standard_normal(len(time))
    held = io.BytesIO()
    soundfile.write(held, np.stack([samples] * channels, axis=1).astype(np.float32), rate, format="WAV")
    return held.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        (tmp_path / f"{number}.wav").write_bytes(wav(seed=number))
    return tmp_path


def test_a_folder_with_texts_beside(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"text {number}\n")
    found = read_recordings(folder, columns=Columns())
    assert found.texts == ("0.wav", "1.wav", "2.wav")
    assert found.labels == (("text 0",), ("text 1",), ("text 2",))
    assert found.items()[1]["audio"] == (folder / "1.wav").read_bytes()
    assert len(set(found.keys())) == 3


def test_librispeechs_folders(tmp_path: Path) -> None:
    for speaker, chapter in ((84, 121123), (174, 50561)):
        folder = tmp_path / "dev-clean" / str(speaker) / str(chapter)
        folder.mkdir(parents=True)
        names = [f"{speaker}-{chapter}-{number:04}" for number in range(2)]
        for name in names:
            (folder / f"{name}.flac").write_bytes(wav())
        lines = "".join(f"{name} GO ON {name[-1]} {speaker}\n" for name in names)
        (folder / f"{speaker}-{chapter}.trans.txt").write_text(lines)
    found = read_recordings(tmp_path, columns=Columns())
    assert found.texts[0] == "dev-clean/174/50561/174-50561-0000.flac"
    assert found.labels == (("GO ON 0 174",), ("GO ON 1 174",), ("GO ON 0 84",), ("GO ON 1 84",))
    (tmp_path / "dev-clean/84/121123/84-121123.trans.txt").write_text("84-121123-0000 GO ON\n84-121123-0001\n")
    with pytest.raises(InputError, match=r"84-121123-0001\.flac has no .*no line in a \*\.trans\.txt"):
        read_recordings(tmp_path, columns=Columns())


def test_common_voices_table_and_its_clips(folder: Path) -> None:
    (folder / "clips").mkdir()
    for number in range(3):
        (folder / f"{number}.wav").rename(folder / "clips" / f"common_voice_en_{number}.wav")
    names = ("client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes", "locale")
    said = ("He said.", '"Go on," she said.', 'An "end')
    rows = [f"a1\tcommon_voice_en_{n}.wav\tb{n}\t{text}\t\t2\t0\ten" for n, text in enumerate(said)]
    (folder / "validated.tsv").write_text("\n".join(["\t".join(names), *rows]) + "\n")
    found = read_recordings(folder / "validated.tsv", columns=Columns())
    assert found.texts == tuple(f"common_voice_en_{n}.wav" for n in range(3))
    assert found.labels == tuple((text,) for text in said)
    assert found.sounds is not None
    assert found.sounds[1] == wav(seed=1)


@pytest.mark.skipif("MP3" not in soundfile.available_formats(), reason="an older libsndfile")
def test_a_table_may_name_what_libsndfile_reads(folder: Path) -> None:
    (folder / "clips").mkdir()
    noise = np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.1
    soundfile.write(folder / "clips" / "a.mp3", noise, 16000, format="MP3")
    (folder / "test.tsv").write_text("path\tsentence\na.mp3\tHello.\n")
    found = read_recordings(folder / "test.tsv", columns=Columns())
    assert found.sounds is not None
    samples, rate = opened(found.sounds[0], name="a.mp3", seconds=2.0)
    assert (samples.shape, rate) == ((16000, 1), 16000)


def test_librispeechs_columns(folder: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    row = {"file": "/data/84-1-0.flac", "audio": {"bytes": wav(), "path": "84-1-0.flac"}, "text": "GO ON",
           "speaker_id": 84, "chapter_id": 1, "id": "84-1-0"}  # fmt: skip
    parquet.write_table(pa.Table.from_pylist([row]), folder / "rows.parquet")
    found = read_recordings(folder / "rows.parquet", columns=Columns())
    assert (found.texts, found.labels) == (("84-1-0.flac",), (("GO ON",),))


def test_a_folder_with_a_table_and_a_table_of_paths(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,transcription\n2.wav,two\n0.wav,zero\n")
    for source in (folder, folder / "metadata.csv"):
        found = read_recordings(source, columns=Columns())
        assert (found.texts, found.labels) == (("2.wav", "0.wav"), (("two",), ("zero",)))


def test_parquet_with_the_recordings_themselves(folder: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"audio": {"bytes": wav(seed=n), "path": f"{n}.wav"}, "sentence": f"text {n}"} for n in range(2)]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    found = read_recordings(folder / "rows.parquet", columns=Columns())
    assert found.texts == ("0.wav", "1.wav")
    assert found.labels == (("text 0",), ("text 1",))
    assert found.sounds is not None
    assert found.sounds[0] == wav(seed=0)


def test_what_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"0\.txt beside it"):
        read_recordings(folder, columns=Columns())
    with pytest.raises(InputError, match="one recording"):
        read_recordings(folder / "0.wav", columns=Columns())
    (folder / "rows.csv").write_text("file_name,text\n9.wav,nine\n")
    with pytest.raises(InputError, match="no such file"):
        read_recordings(folder / "rows.csv", columns=Columns())
    (folder / "rows.csv").write_text("sound,text\n0.wav,zero\n")
    with pytest.raises(InputError, match="--text-column"):
        read_recordings(folder / "rows.csv", columns=Columns())
    assert read_recordings(folder / "rows.csv", columns=Columns(text="sound")).texts == ("0.wav",)
    assert len(read_recordings(folder, columns=Columns(), labels_wanted=False)) == 3


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ("a" * 5000 + ".wav", "no such file"),
        ("0\0.wav", "expected: a path"),
        ({"path": "0.wav", "bytes": "UklGRg=="}, "expected: a path"),
        ({"path": "0.wav", "bytes": 10**13}, "expected: a path"),
        ({"path": "0.wav", "bytes": [300]}, "expected: a path"),
    ],
    ids=["a long name", "a zero byte", "a text", "a number", "a list"],
)
def test_what_is_no_recording_is_named_with_its_row(folder: Path, audio: object, message: str) -> None:
    (folder / "rows.jsonl").write_text(json.dumps({"audio": audio, "text": "zero"}) + "\n")
    with pytest.raises(InputError, match=r"row 1 of .*rows\.jsonl") as refused:
        read_recordings(folder / "rows.jsonl", columns=Columns())
    assert message in str(refused.value)


def test_folders_are_no_files_whatever_they_are_called(folder: Path) -> None:
    for name in ("0.wav", "1.wav", "2.wav"):
        (folder / name).with_suffix(".txt").write_text("said")
    for name in ("a.trans.txt", "old.wav", "more.mp3"):
        (folder / name).mkdir()
    assert read_recordings(folder, columns=Columns()).texts == ("0.wav", "1.wav", "2.wav")


def test_recordings_that_would_be_lost_are_said(folder: Path) -> None:
    (folder / "3.MP3").write_bytes(b"ID3")
    with pytest.raises(InputError, match=r"1 recordings of .*3\.MP3, are in a form that is not read"):
        read_recordings(folder, columns=Columns(), labels_wanted=False)


def test_columns_are_found_whatever_their_case(folder: Path) -> None:
    (folder / "rows.csv").write_text("File_Name,Transcript\n1.wav,one\n")
    found = read_recordings(folder / "rows.csv", columns=Columns())
    assert (found.texts, found.labels) == (("1.wav",), (("one",),))


@pytest.mark.parametrize("content", [b"no sound", b"", wav(0.0)], ids=["text", "nothing", "empty"])
def test_what_cannot_be_heard(content: bytes) -> None:
    with pytest.raises(InputError):
        opened(content, name="x", seconds=31.0)


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> SpeechProcessor:
    from tiny_models import save_tokenizer
    from transformers import WhisperFeatureExtractor

    folder = tmp_path_factory.mktemp("whisper")
    save_tokenizer(folder)
    WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)
    made = open_processor({p.name: p.read_bytes() for p in folder.iterdir()}, max_length=448)
    assert isinstance(made, SpeechProcessor)
    return made


def test_features_are_those_of_transformers_whatever_the_rate_and_channels(processor: SpeechProcessor) -> None:
    from transformers import WhisperFeatureExtractor

    plain = processor.hear(wav()).arrays["input_features"]
    extract = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    samples = opened(wav(), name="x", seconds=31.0)[0][:, 0]
    wanted = extract(samples, sampling_rate=16000, return_tensors="np")["input_features"][0]
    assert plain.shape == (8, 100)
    assert np.abs(plain - wanted).max() < 1e-4
    bare = extract._np_extract_fbank_features(np.pad(samples, (0, 8000))[None], "cpu")[0]
    assert np.abs(plain - bare).max() < 1e-4
    assert np.array_equal(processor.hear(wav(channels=2)).arrays["input_features"], plain)
    other = processor.hear(wav(rate=8000)).arrays["input_features"]
    assert np.abs(other - plain)[:4, :40].mean() < 0.2  # low bands of the same tone
    assert np.abs(processor.blank().arrays["input_features"]).max() == 0


@pytest.mark.parametrize("mels", [80, 128])
def test_mel_bands_are_those_of_transformers(mels: int) -> None:
    from transformers import WhisperFeatureExtractor

    found = log_mel_of({"feature_size": mels, "feature_extractor_type": "WhisperFeatureExtractor"})
    assert np.abs(found.bands - WhisperFeatureExtractor(feature_size=mels).mel_filters).max() < 1e-9
    assert (found.mels, found.frames) == (mels, 3000)


@pytest.mark.parametrize("wrong", [{"n_fft": 0}, {"hop_length": "160"}, {"dither": 0.1}, {"n_fft": 900_000}])
def test_settings_that_make_no_features_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        log_mel_of(wrong)


def test_recordings_need_neither_torch_nor_transformers() -> None:
    code = "import sys, hasten.tasks.speech; sys.exit(bool({'torch', 'transformers', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["../0.wav", "/etc/hostname", "~/0.wav", "link.wav"])
def test_a_table_names_no_files_outside_of_its_folder(folder: Path, name: str) -> None:
    inner = folder / "inner"
    inner.mkdir()
    (inner / "link.wav").symlink_to(folder / "0.wav")
    (inner / "rows.csv").write_text(f"file_name,text\n{name},zero\n")
    with pytest.raises(InputError, match=r"outside of|no such file"):
        read_recordings(inner / "rows.csv", columns=Columns())
    (folder / "rows.csv").write_text(f"file_name,text\n{folder}/0.wav,zero\n")
    assert len(read_recordings(folder / "rows.csv", columns=Columns())) == 1


def test_what_is_too_long_is_cut_and_said_so(processor: SpeechProcessor) -> None:
    assert processor.hear(wav(1.5)).truncated
    assert not processor.hear(wav(0.9)).truncated


def test_of_long_recordings_only_what_is_heard_is_read(processor: SpeechProcessor) -> None:
    """Hours of silence are a small file."""
    long = wav(4.0)
    assert len(opened(long, name="x", seconds=2.0)[0]) == 32000
    assert np.array_equal(
        processor.hear(long).arrays["input_features"], processor.hear(wav(4.0)[: 44 + 64000]).arrays["input_features"]
    )


@pytest.mark.parametrize("rate", [1, 2**31 - 1])
def test_rates_that_no_recording_has(rate: int, processor: SpeechProcessor) -> None:
    """Resampling from one would fill the memory."""
    held = io.BytesIO()
    soundfile.write(held, np.full(100, 0.1, dtype=np.float32), rate, format="WAV")
    with pytest.raises(InputError, match="samples a second"):
        processor.hear(held.getvalue())
