"""``python -m hasten.native``: builds the shared library and says which instruction sets this host runs."""

from __future__ import annotations

import sys

from hasten.native.build import BuildError, build
from hasten.native.shared_library import library


def main() -> int:
    try:
        built = build()
    except (BuildError, OSError) as error:
        print(f"the native library was not built: {error}", file=sys.stderr)
        return 1
    for name, words in built.skipped.items():
        print(f"without {name}: {words}", file=sys.stderr)
    print(f"{built.library}: {', '.join(library().isas)} ({built.compiler})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
