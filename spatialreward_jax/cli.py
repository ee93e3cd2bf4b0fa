"""How every program starts: flags are parsed, and the user's mistakes end in one line and exit status 2."""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from spatialreward_jax.errors import InputError


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None, *, positional: int = 0) -> None:
    """Runs `main([program, *arguments without a flag])` and exits with the status that it returns (0 for None).

    A wrong flag, a wrong config file, preset or key, more than `positional` arguments without a flag, and any
    `InputError` that `main` raises are printed to stderr as one line `error: ...`, without a stack trace; the status
    is then 2.
    """

    def guarded(rest):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.FATAL)  # orbax logs pages; what fails is said in one line
        if len(rest) > 1 + positional:
            fail(f"unexpected argument {rest[1 + positional]!r}; flags look like --name=value, see --help")
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
    except (AttributeError, KeyError) as error:  # what a locked config says to a key that it lacks
        inner = error.args[0] if error.args else ""
        while isinstance(inner, BaseException):
            inner = inner.args[0] if inner.args else ""
        fail(f"the config has no key {inner}" if str(inner).startswith("'") else f"cannot use the config: {inner}")
    except (flags.Error, ValueError, TypeError, OSError) as error:
        # config_flags puts the stack trace of a config file's own error in front of its message
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        traced = any("Error whilst parsing config file" in line for line in lines)
        fail(lines[-1].removeprefix("ValueError: ") if traced else " ".join(lines))
