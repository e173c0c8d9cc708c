"""The command line: ``skvae``, or ``python -m skvae``.

What needs torch, matplotlib, pandas or rich is imported by the command that uses it,
so that ``--help`` answers at once.
"""

import sys
from importlib import import_module

from skvae.cli._parser import Stop, parse

__all__ = ["main"]

# The module that runs each command.
HOMES = {
    "compare": "skvae.cli._compare",
    "fit": "skvae.cli._models",
    "transform": "skvae.cli._models",
    "score": "skvae.cli._models",
    "report": "skvae.cli._report",
    "forecast": "skvae.cli._answers",
    "list": "skvae.cli._answers",
    "reproduce": "skvae.cli._reproduce",
}


def main(argv=None):
    """Run one command.

    Parameters
    ----------
    argv : list of str, default=None
        Arguments; None takes those of the process.

    Returns
    -------
    code : int
        0 for success, 2 for a mistake in the arguments or the data, which is told in
        one line on the standard error, 130 after an interruption.
    """
    argv = sys.argv[1:] if argv is None else [str(argument) for argument in argv]
    try:
        arguments = parse(argv)
    except Stop as stop:
        return stop.code
    arguments.argv = argv
    run = getattr(import_module(HOMES[arguments.command]), f"run_{arguments.command}")
    try:
        run(arguments)
    except KeyboardInterrupt as stop:
        outcome = str(stop) or "nothing was written."
        print(f"skvae: interrupted; {outcome}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the output, `head` for instance, has seen enough.
        sys.stderr.close()
        return 0
    except (ValueError, OSError, ImportError) as error:
        if arguments.traceback:
            raise
        line = " ".join(str(error).split())
        print(f"skvae {arguments.command}: error: {line}", file=sys.stderr)
        return 2
    return 0
