"""The command line: one file per command, loaded when it is called."""

from __future__ import annotations

import codecs
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import click

from mlx_ltx2.errors import LTX2Error

COMMANDS = {
    "generate": "make a clip from text, images or sound",
    "demo": "show the whole chain on the small built-in model, without any download",
    "convert": "split an official checkpoint into a model folder, once",
    "plan": "say what a generate command would do, and touch no weights",
    "info": "show what a model folder, a checkpoint or a finished clip is made of",
    "rerun": "make a finished clip again from what it says about itself",
    "retake": "regenerate a stretch of an existing clip",
    "upscale": "enlarge an image or a video through the latent upsamplers",
    "enhance": "rewrite a prompt with the text encoder's language model",
    "doctor": "check this machine and say what it can run",
}
INTERRUPTED = 130
STOPS = ("SIGTERM", "SIGHUP")
"""Signals that end a run as Ctrl-C does, tidily: a request to end, and a terminal that was closed."""


class LazyGroup(click.Group):
    """Imports a command's module only when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"mlx_ltx2.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlx-ltx2")
def cli() -> None:
    """LTX-2 and LTX-2.3 in MLX: text, images or sound become video with synchronised sound."""


def run(command: click.Command, args: Sequence[str] | None = None, name: str = "mlx-ltx2") -> int:
    """Run a click command and turn every outcome into an exit code; errors are one sentence on stderr.

    A signal of `STOPS` interrupts it, and the exit code is then 128 + its number.
    """
    _print_anything()
    with _stoppable() as received:
        code = _outcome(command, args, name, received)
    return 128 + received[0] if received else code


def _outcome(command: click.Command, args: Sequence[str] | None, name: str, received: Sequence[int]) -> int:
    try:
        command.main(args=list(sys.argv[1:] if args is None else args), prog_name=name, standalone_mode=False)
    except LTX2Error as error:
        return _complain(str(error), error.exit_code)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        where = getattr(error, "ctx", None)
        hint = f"\nTry '{where.command_path} --help'." if where else ""
        return _complain(error.format_message() + hint, 2)
    except (KeyboardInterrupt, click.Abort) as stop:
        cause = stop if isinstance(stop, KeyboardInterrupt) else stop.__cause__
        how = f"ended by {signal.Signals(received[0]).name}" if received else "interrupted"
        return _complain(f"{how}; {str(cause or '') or 'nothing was left behind'}.", INTERRUPTED)
    except MemoryError:
        return _complain("out of memory; use a smaller size, fewer frames or --low-memory.", 4)
    except Exception as error:
        if os.environ.get("MLX_LTX2_TRACEBACK"):
            raise
        text = (
            f"unexpected {type(error).__name__}: {error}\nSet MLX_LTX2_TRACEBACK=1 to see where, and please report it."
        )
        return _complain(text, 1)
    return 0


def _print_anything() -> None:
    """What a terminal cannot show, such as bytes of a file name that are no text, is printed escaped.

    An ASCII terminal is taken for one of UTF-8, as click does.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            ascii_only = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if ascii_only else None, errors="backslashreplace")


@contextmanager
def _stoppable() -> Iterator[list[int]]:
    """Signals of `STOPS` raise KeyboardInterrupt inside; yields those that came.

    What the caller ignores or handles stays so, as under nohup. Only the main thread can be told of signals.
    """
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        if len(received) == 1:  # later ones must not disturb the tidying up
            raise KeyboardInterrupt

    kept = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in STOPS if hasattr(signal, name)]
        kept = {n: signal.signal(n, stop) for n in numbers if signal.getsignal(n) is signal.SIG_DFL}
    try:
        yield received
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _complain(text: str, code: int) -> int:
    with suppress(OSError):  # the terminal may be gone
        click.echo(f"error: {text}", err=True)
    return code


def main() -> None:
    sys.exit(run(cli))


def _single(name: str) -> None:
    command = importlib.import_module(f"mlx_ltx2.cli.{name}").command
    sys.exit(run(command, name=f"mlx_ltx2.{name}"))


def generate_main() -> None:
    _single("generate")


def convert_main() -> None:
    _single("convert")


def upscale_main() -> None:
    _single("upscale")
