"""Run every benchmark, one after the other, on an otherwise idle machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

QUESTIONS = ("startup", "demo_classifier", "bert_base_shape", "null_duel", "kill_resume")


def main() -> None:
    here = Path(__file__).parent
    for name in QUESTIONS:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, str(here / f"{name}.py")], check=True)


if __name__ == "__main__":
    main()
