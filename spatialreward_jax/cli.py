"""How every program starts: flags are parsed, and the user's mistakes end in one line and exit status 2."""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags

from spatialreward_jax.errors import InputError


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> None:
    """Runs `main(positional arguments)` and exits with the status that it returns (0 for None).

    A wrong flag, a wrong config file, preset or key, a positional argument, and any `InputError` that `main` raises
    are printed to stderr as one line `error: ...`, without a stack trace; the status is then 2.
    """

    def guarded(rest):
        if len(rest) > 1:
            fail(f"unexpected argument {rest[1]!r}; flags look like --name=value, see --help")
        try:
            return main(rest)
        except InputError as error:
            fail(str(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            return 130

    app.run(guarded, argv=None if argv is None else list(argv), flags_parser=_parse)


def fail(message: str) -> None:
    """Prints `error: message` as one line to stderr and exits with status 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(2)


def _parse(argv):
    if any(argument in ("--help", "-help", "--helpfull", "-?") for argument in argv):
        return app.parse_flags_with_usage(argv)
    try:
        return flags.FLAGS(argv)
    except (flags.Error, ValueError, TypeError, KeyError, AttributeError, OSError, SyntaxError, ImportError) as error:
        # config_flags re-raises what a config file raises, with the stack trace in front of the message
        lines = [line.strip() for line in str(error.args[0] if error.args else error).splitlines() if line.strip()]
        message = lines[-1] if lines else type(error).__name__
        if len(lines) > 1 and lines[0].startswith("Error whilst parsing config file"):
            kind, _, rest = message.partition(": ")
            message = rest if kind in ("ValueError", "spatialreward_jax.errors.InputError") and rest else message
        elif lines:
            message = " ".join(lines)
        fail(message)
