"""The errors that a user can cause and mend.

Takes what was got, expected and to do; gives exceptions that cross process boundaries
whole. Everything else that is raised is a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar


class HastenError(Exception):
    """Base of every error that a user can cause and mend; the command line exits with ``exit_code``."""

    exit_code: ClassVar[int] = 2


class InputError(HastenError, ValueError):
    """Bad input: the message says what was got, what was expected and what to do."""

    def __init__(self, got: str, *, expected: str, remedy: str) -> None:
        super().__init__(f"{got}\n  expected: {expected}\n  to do: {remedy}")
        self.got, self.expected, self.remedy = got, expected, remedy

    def __reduce__(self) -> tuple[Any, ...]:  # crosses a process boundary
        return (_input_error, (type(self), self.got, self.expected, self.remedy))


class DiskFull(InputError):
    """A write found no room. It ends a run, which can be gone on with; no candidate is to blame for it."""

    exit_code = 74  # EX_IOERR of sysexits.h


class MissingDependency(HastenError, ImportError):
    """An optional library is not installed; the message names the extra that brings it."""

    def __init__(self, library: str, *, extra: str) -> None:
        super().__init__(f"{library} is not installed\n  to do: pip install 'hasten[{extra}]'")
        self.library, self.extra = library, extra

    def __reduce__(self) -> tuple[Any, ...]:
        return (_missing_dependency, (self.library, self.extra))


class Rejected(HastenError):
    """A candidate cannot be built, is wrong, or does not fit. A result for the ledger, not a crash.

    ``stage`` is where it fell (``"export"``, ``"parity"``, ``"memory"``...), ``reason`` a sentence with numbers.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage, self.reason = stage, reason

    def __reduce__(self) -> tuple[type[Rejected], tuple[str, str]]:  # crosses a process boundary
        return (type(self), (self.stage, self.reason))


def _input_error(kind: type[InputError], got: str, expected: str, remedy: str) -> InputError:
    return kind(got, expected=expected, remedy=remedy)


def _missing_dependency(library: str, extra: str) -> MissingDependency:
    return MissingDependency(library, extra=extra)


def did_you_mean(given: str, known: Iterable[str], *, otherwise: str) -> str:
    """A remedy for a name that is not known: the nearest one, where there is one."""
    near = difflib.get_close_matches(given, list(known), n=1)
    return f"did you mean {near[0]}?" if near else otherwise
