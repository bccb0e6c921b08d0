"""Run every benchmark, one after the other, on an otherwise idle machine.

``run_all.py [--compression] [--families] [--native]``: those of these folders too, which take hours.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

QUESTIONS = (
    "startup", "demo_classifier", "bert_base_shape", "null_duel", "kill_resume", "sizing/this_host", "sizing/queues",
    "native/encoders",
)  # fmt: skip
# These take hours, and need checkpoints and data that lie beside the checkout or in packages of their own.
FOLDERS = {
    "compression": (
        "vocabulary", "techniques", "integers", "recovery", "pruning", "progressive", "search", "banking77",
    ),
    "families": ("encoders", "decoders", "eight_four", "trimmed", "stages", "whisper"),
    "native": ("encoders", "decoders", "token_profile"),
}  # fmt: skip
PAGES = "compression/pages"


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__)
    for folder in FOLDERS:
        parser.add_argument(f"--{folder}", action="store_true")
    asked = [folder for folder, wanted in vars(parser.parse_args()).items() if wanted]
    more = [f"{folder}/{name}" for folder in asked for name in FOLDERS[folder]]
    for name in (*QUESTIONS, *more, *([PAGES] if more else [])):
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, str(here / f"{name}.py")], check=True)


if __name__ == "__main__":
    main()
