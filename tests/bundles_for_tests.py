"""A bundle of a language model, put together without the search that usually makes one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from hasten.bundle.answers import Answers
from hasten.bundle.golden import make_golden
from hasten.bundle.manifest import Manifest, Measurement
from hasten.bundle.write import write_bundle
from hasten.measure.host import describe_host, usable_cores
from hasten.measure.writing import FORCED, forced
from hasten.models.load import load_checkpoint
from hasten.records import ModelRef, Workload, config_to_dict
from hasten.runtimes import get_runtime
from hasten.runtimes.torch import TorchConfig
from hasten.tasks import get_task
from hasten.tasks.examples import collate
from hasten.tasks.processor import open_processor
from hasten.tasks.rows import of_items


def language_bundle(
    checkpoint: Path, target: Path, *, runtime: str = "torch", task: str = "language-modeling",
    answers: Answers | None = None, config: TorchConfig | None = None,
) -> Path:  # fmt: skip
    """``runtime`` other than torch: only the manifest says so, and no weights are in it. ``answers`` where the task
    writes."""
    own = get_task(task)
    found = load_checkpoint(ModelRef(str(checkpoint)), task=own)
    processor = open_processor(found.processor_files, max_length=found.max_length)
    item = {"text": "the cat the dog"}
    batch = collate(own.encode(processor, item), found.input_names)
    folder = target.with_name(f"{target.name}-model")
    folder.mkdir()
    wrapper, config = own.wrap(found).eval(), config or TorchConfig()
    get_runtime("torch").export(wrapper, config, calibration=[batch], folder=folder, cache=folder)
    session = get_runtime("torch").open(folder, config, threads=1, cores=usable_cores()[:1])
    if answers is None:
        outputs = own.comparable(session.run(batch))
    else:
        batch = {**batch, FORCED: np.array([[3, 7, 5]])}
        outputs = own.comparable(forced(session, batches=[batch])[0])
    if runtime != "torch":
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"a graph")
    said = {**config_to_dict(config), "kind": runtime}
    cores = usable_cores()[:1]
    manifest = Manifest(
        task=task, labels=(), family=found.family, source=str(checkpoint), source_hash=found.source_hash, license=None,
        recipe={"passes": [], "runtime": said}, recipe_id="abc", recipe_label=runtime, input_names=found.input_names,
        max_length=found.max_length, workload=Workload(threads=1, cores=cores), instructions=(),
        precision_ran=session.precision, host=describe_host(cores=cores, threads=1), measured=Measurement(),
        golden_tolerance=1e-3, answers=answers,
    )  # fmt: skip
    golden = make_golden(of_items([item]), batches=[batch], outputs=[np.asarray(outputs)])
    write_bundle(target, model_folder=folder, processor_files=found.processor_files, golden=golden, manifest=manifest)
    return target
