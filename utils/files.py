"""Command lines and files: one-line errors, and writes that appear under their name only when complete."""

import contextlib
import io
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import tyro
from tqdm import tqdm

from utils.errors import InputError


def say(text: str) -> None:
    """A line on stderr, above any progress bar. Only a script's result goes to stdout."""
    tqdm.write(text, file=sys.stderr)


def current_commit() -> str:
    """The commit that runs, marked -dirty if tracked files differ from it; "unknown" outside a git clone."""
    top = Path(__file__).parent.parent
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=top, capture_output=True, text=True)
    except OSError:  # no git
        return "unknown"
    return done.stdout.strip() or "unknown"


def parse(args_class, argv=None, default=None, description=None):
    """tyro.cli, with its boxed complaints turned into a one-line InputError. --help prints and exits as usual."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(args_class, args=argv, default=default, description=description)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    raise InputError(condense(said.getvalue()) or "the command line is wrong; try --help")


def condense(box: str) -> str:
    """One line from tyro's box: its first paragraph, and the names of the flags that it suggests."""
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    sections = [[]]  # the box without Unicode has its title in the first one
    for line in lines:
        if re.fullmatch(r"[╭╰].*|[─-]{5,}", line):
            sections.append([])
        else:
            sections[-1].append(line)
    said, *hints = [section for section in sections[1:] if any(section)] or [[]]
    said = " ".join(itertools.takewhile(bool, said))
    near = [line.split()[0] for hint in hints if hint[0].startswith("Perhaps") for line in hint if line[:2] == "--"]
    return " ".join(f"{said}; did you mean {' or '.join(near)}?".split()) if near else " ".join(said.split())


@contextlib.contextmanager
def atomic(path: Path):
    """A temporary name beside `path` to write to; renamed to `path` at the end, removed if anything goes wrong.

    Raises InputError, in one line, where the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        reason = " ".join((error.strerror or str(error)).split())
        raise InputError(f"cannot write {path}: {reason}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def run_script(name: str, main) -> None:
    """Run `main`; bad input ends with one line on stderr and status 2, an interrupt with status 130."""
    try:
        main()
    except InputError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        sys.exit(130)
