"""Command lines and files: complaints of one line, writes that appear at the end only."""

import os
import re
import subprocess
import sys

import pytest
from common import ROOT, one_line

from data.behaviour import Args
from utils.errors import InputError
from utils.files import atomic, current_commit, parse, reading, run_script


@pytest.mark.parametrize("folder", [False, True])
def test_atomic_appears_only_at_the_end(folder, tmp_path):
    def fill(partial, text):
        if folder:
            partial.mkdir()
        (partial / "x.txt" if folder else partial).write_text(text)

    path, inside = tmp_path / "new" / "name.npz", "x.txt" if folder else ""
    with atomic(path) as partial:
        assert partial.suffix == ".npz" and partial.parent == path.parent
        fill(partial, "first")
        assert not path.exists()
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), atomic(path) as partial:
            fill(partial, "half")
            raise error
    assert (path / inside).read_text() == "first" and list(path.parent.iterdir()) == [path]
    if not folder:
        with atomic(path) as partial:
            fill(partial, "second")
        assert path.read_text() == "second" and list(path.parent.iterdir()) == [path]


def test_failed_writes_and_reads_are_told_in_one_line(tmp_path):
    def write(path):
        with atomic(path) as partial:
            partial.write_text("half")
            raise OSError("file write failed: time = noon\n, errno = 28")

    assert "errno = 28" in one_line(lambda: write(tmp_path / "x")) and list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert f"cannot write {tmp_path / 'file' / 'x'}: " in one_line(lambda: write(tmp_path / "file" / "x"))

    def read(error):
        with reading(tmp_path / "file", "a poem"):
            raise error

    said = f"cannot read {tmp_path / 'file'} as a poem (truncated, damaged or foreign): "
    assert one_line(lambda: read(KeyError("a\n\0b"))).startswith(said + "KeyError: 'a")
    assert one_line(lambda: read(ValueError())) == said + "ValueError: ValueError"
    assert one_line(lambda: read(InputError("x" * 20))) == "x" * 20


COMPLAINTS = {
    "--env-di simple_tag": "Unrecognized options: --env-di, simple_tag; did you mean --env-id?",
    "--iterations many": "Error parsing --iterations: invalid literal for int() with base 10: 'many'",
    "--action-kind x": "unknown --action-kind 'x' (choose from discrete, continuous)",
}


@pytest.mark.parametrize("columns", ["30", "80", "300"])
def test_complaint_about_flags_is_one_line_at_any_width(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    for flags, complaint in COMPLAINTS.items():
        message = one_line(lambda flags=flags: parse(Args, flags.split()))
        assert message == complaint or columns == "30"  # where words are broken
        assert "help" not in message and "│" not in message


def test_parse_reads_flags_and_defaults(monkeypatch):
    args = parse(Args, ["--env-id", "simple_tag", "--gamma", "0.5"])
    assert args == Args(env_id="simple_tag", gamma=0.5)
    assert parse(Args, ["--seed", "3"], default=args) == Args(env_id="simple_tag", gamma=0.5, seed=3)
    monkeypatch.setattr("tyro.cli", lambda *args, **kwargs: sys.exit(2))  # whatever tyro may do one day
    assert one_line(lambda: parse(Args, [])) == "the command line is wrong; try --help"


def test_script_ends_with_status_2_and_one_line(tmp_path):
    """Even where the terminal knows no box-drawing letters."""
    command = [sys.executable, "-m", "data.behaviour", "--out", str(tmp_path), "--iteration", "5"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "40"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    hint = "did you mean --iterations or --selfplay-iterations or --value-iterations?"
    line = f"data.behaviour: error: Unrecognized options: --iteration, 5; {hint}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InputError("bad thing"), 2, "name: error: bad thing\n"),
        (KeyboardInterrupt(), 130, "\nname: interrupted\n"),
        (OSError(28, "No space left", "runs/x"), 2, "name: error: runs/x: No space left\n"),
        (BrokenPipeError(), 2, ""),
        (RuntimeError("you tried to allocate 8 bytes"), 2, "name: error: you tried to allocate 8 bytes\n"),
    ],
)
def test_run_script_ends_tidily(error, status, said, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run_script("name", main)
    assert (stop.value.code, capsys.readouterr()) == (status, ("", said))
    with pytest.raises(RuntimeError, match="shapes differ"):  # it hides no bug
        run_script("name", lambda: (_ for _ in ()).throw(RuntimeError("shapes differ")))


PRINTS = "from utils.files import run_script; run_script('name', lambda: print({}))"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (f'python -c "{PRINTS.format("2 * 10**5 * chr(65)")}" | head -c 5', ""),
        (f'python -c "{PRINTS.format(1)}" > /dev/full', "name: error: No space left on device\n"),
    ],
)
def test_closed_pipes_and_full_disks_leave_no_traceback(command, said):
    command = command.replace("python", sys.executable)
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == said


def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    assert current_commit() not in ("", "unknown")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert current_commit() == "unknown"


def test_changed_code_makes_a_commit_dirty(tmp_path):
    """Results that grow, and texts, do not."""
    assert current_commit(tmp_path) == "unknown"
    (tmp_path / "results").mkdir()
    commits, names = [], ("code.py", "README.md", "results/runs.csv")
    for changed in (names, names[1:], names[:1]):
        for name in changed:
            (tmp_path / name).write_text(f"version {len(commits)}")
        if not commits:
            me = "-c user.name=x -c user.email=x -c commit.gpgsign=false"
            for words in ("init -q", "add .", f"{me} commit -qm x"):
                subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
        commits.append(current_commit(tmp_path))
    assert re.fullmatch("[0-9a-f]{7,}", commits[0]) and commits[1:] == [commits[0], f"{commits[0]}-dirty"]
