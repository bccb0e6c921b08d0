"""The tasks by name. To add one: a file beside this one and a line in :data:`TASKS`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, cast

from hasten.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from hasten.tasks.task import Task

TASKS: Mapping[str, str] = {
    "text-classification": "hasten.tasks.text_classification:TextClassification",
    "feature-extraction": "hasten.tasks.feature_extraction:FeatureExtraction",
    "token-classification": "hasten.tasks.token_classification:TokenClassification",
    "question-answering": "hasten.tasks.question_answering:QuestionAnswering",
    "text-regression": "hasten.tasks.text_regression:TextRegression",
    "language-modeling": "hasten.tasks.language_modeling:LanguageModeling",
    "multiple-choice": "hasten.tasks.multiple_choice:MultipleChoice",
    "image-classification": "hasten.tasks.image_classification:ImageClassification",
    "text-generation": "hasten.tasks.text_generation:text_generation",
    "summarization": "hasten.tasks.summarization:summarization",
    "translation": "hasten.tasks.translation:translation",
    "speech-recognition": "hasten.tasks.speech_recognition:speech_recognition",
}


def get_task(name: str) -> Task:
    """The task. Raises InputError with the nearest names for an unknown one."""
    if name not in TASKS:
        raise InputError(
            f"unknown task {name!r}",
            expected=f"one of {', '.join(TASKS)}",
            remedy=did_you_mean(name, TASKS, otherwise="choose the task that the checkpoint was trained for"),
        )
    module, attribute = TASKS[name].split(":")
    return cast("Task", getattr(import_module(module), attribute)())
