"""The command line: thin verbs over the Python API.

Takes arguments, prints for people on stdout (progress on stderr) or, with ``--json``,
one machine-readable object. Exit codes: 0 done (for ``check``: passed), 1 regression
or budget not met, 2 bad input, 70 a fault of hasten's own, 74 the disk is full, 130 interrupted. Heavy imports stay
inside the verbs, so ``hasten --help`` answers at once.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import traceback
from contextlib import suppress

import click

from hasten import __version__
from hasten.cli.benching import bench
from hasten.cli.bundles import check, doctor, report, run
from hasten.cli.interchange import evaluate, export
from hasten.cli.search import demo, optimize
from hasten.cli.sizing import size
from hasten.cli.vocabulary import trim_vocabulary

# They warn of GPU code that a CPU build lacks and of their own deprecations, on every start.
_TALKATIVE = ("torchao", "torch.utils._pytree")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="hasten")
def cli() -> None:
    """Find the fastest Transformer that provably still passes, on your hardware.

    \b
    Start here:
      hasten demo                        the main job on an embedded model, in minutes
      hasten doctor                      what this machine offers, and what is missing
      hasten size --task chat ...        what to deploy, where, at what cost, before anything is built
      hasten optimize MODEL --task text-classification --data rows.csv
                      --budget "quality_drop<=1%, p95_ms<=20" --time 10m --out out/
    """


for verb in (optimize, demo, doctor, size, run, bench, check, report, export, evaluate, trim_vocabulary):
    cli.add_command(verb)


def main() -> None:
    """Entry point: user errors become a message and their exit code, never a traceback."""
    from hasten.records import HastenError

    signal.signal(signal.SIGTERM, _interrupted)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        cli.main(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):  # click makes the one of the other
        _fail("interrupted\n  to do: give the same command again; hasten optimize goes on where it stopped", 130)
    except click.ClickException as error:
        if "--json" not in sys.argv:
            error.show()
            sys.exit(error.exit_code)
        _fail(error.format_message(), error.exit_code)
    except HastenError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except Exception as error:
        _fail(*_of_the_system(error))


def _of_the_system(error: Exception) -> tuple[str, int]:
    """Message and exit code of what no check of ours has named: a full disk, another refusal of the system, a fault."""
    from hasten.pipeline.disk import found_no_room

    said = str(error) or type(error).__name__
    if found_no_room(error):  # whatever a library made of it
        return (
            f"the disk is full ({said[:200]})\n  expected: room for what was being written\n"
            "  to do: free some space, then give the same command again"
        ), 74
    if isinstance(error, OSError):
        return f"{said}\n  to do: check that the disk has space and the folder may be written", 2
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}\n  this is a fault of hasten, not of your input; please report it", 70


def _interrupted(number: int, frame: object) -> None:
    """A polite wish to end is Ctrl-C's: what is half-made is cleared away on the way out."""
    del number, frame
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    if "--json" in sys.argv:
        with suppress(OSError):  # stdout may be what failed
            click.echo(json.dumps({"error": message, "exit_code": code}))
    sys.exit(code)
