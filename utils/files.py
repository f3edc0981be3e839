"""Command lines and files: one-line errors, and writes that appear under their name only when complete."""

import contextlib
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import tyro
from tqdm import tqdm

from utils.errors import InputError, check_choice

TOP = Path(__file__).resolve().parent.parent  # the repository


def say(text: str) -> None:
    """A line on stderr, above any progress bar. Only a script's result goes to stdout."""
    tqdm.write(text, file=sys.stderr)


def current_commit(top: Path = TOP) -> str:
    """The commit of the code, marked -dirty where code differs from it (results and texts may); "unknown"
    outside of a git clone."""
    git, code = ["git", "-C", str(top)], [".", ":!results", ":!*.md"]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "diff", "--name-only", "HEAD", "--", *code], capture_output=True)
    except OSError:  # no git
        return "unknown"
    return (head.stdout.strip() or "unknown") + "-dirty" * bool(changed.stdout)


def one_line(error: BaseException) -> str:
    """What an exception says, in one printable line of bounded length."""
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    return "".join(c if c.isprintable() else "?" for c in text[:300].strip()) or type(error).__name__


# --------------------------------------------------------------------------------------------- command lines


def parse(args_class, argv=None, default=None, description=None):
    """tyro.cli, with its boxed complaints turned into an InputError of one line. --help prints and exits."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(args_class, args=argv, default=default, description=description)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    said = condense(said.getvalue())
    wrong = re.match(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)", said)
    if wrong:
        value, flag, choices = wrong.groups()
        check_choice(flag, value, re.findall("'(.*?)'", choices))
    raise InputError(said or "the command line is wrong; try --help")


def condense(box: str) -> str:
    """One line from tyro's box: its first paragraph, and the names of the flags that it suggests."""
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    borders = [i for i, line in enumerate(lines) if re.fullmatch(r"[╭╰].*|[─-]{5,}", line)]
    if len(borders) < 2:
        return ""
    said = " ".join(itertools.takewhile(bool, lines[borders[0] + 1 : borders[1]]))
    near = [line.split()[0] for line in lines if re.match("--(?!-|help)", line)]
    return f"{said}; did you mean {' or '.join(near)}?" if "Perhaps you meant:" in lines else said


def run_script(name: str, main) -> None:
    """Run `main`. Bad input, failed reads and writes and too little memory end with one line on stderr and
    status 2, an interrupt with 130. Where the reader of our output is gone, as `head` is, nothing is said."""
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except InputError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        sys.exit(130)
    except (OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        with contextlib.suppress(OSError):  # what stdout could not take, it need not try again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            place = f"{error.filename}: " if getattr(error, "filename", None) else ""
            print(f"{name}: error: {place}{one_line(error)}", file=sys.stderr)
        sys.exit(2)


# -------------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def interrupts_at_the_end():
    """Ctrl-C takes effect after the block. h5py's objects go away in callbacks that would swallow it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = []
    handler = signal.signal(signal.SIGINT, lambda *args: received.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received and callable(handler):
            handler(*received[0])


@contextlib.contextmanager
def reading(path: Path, what: str):
    """Whatever goes wrong while the file is read becomes an InputError of one line: readers raise many kinds
    of exceptions for damaged files, which all mean the same to the user."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"cannot read {path} as {what} (truncated, damaged or foreign): {said}") from None


@contextlib.contextmanager
def atomic(path: Path):
    """A temporary name beside `path` for a file or a folder to write; renamed to `path` at the end, removed
    if anything goes wrong. What a killed process leaves there has .partial in its name.

    Raises InputError, in one line, where it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {one_line(error)}") from None
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            partial.unlink()
