"""The documents against the code: quotations, sessions, links, commands, results, and what a run leaves."""

import doctest
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from common import ROOT, SCRIPTS
from matplotlib.mathtext import MathTextParser

from data.datasets import read_dataset
from data.omar import PUBLISHED_CARDS, PUBLISHED_SCORES
from envs.shipped import load_policies
from experiments import levels

FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {path.name: path.read_text() for path in FILES}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
PROSE = {name: FENCE.sub("", text) for name, text in TEXT.items()}
METHOD = FENCE.findall(TEXT["method.md"])
QUOTES = [body for kind, body in METHOD if kind == "python" and not body.startswith("import")]
FORMULAS = re.findall(r"\$\$(.+?)\$\$|\$([^$]+)\$", "\n".join(PROSE.values()), re.S)


def block(name, word):
    """The only block of a document in which a word stands."""
    (body,) = [body for _, body in FENCE.findall(TEXT[name]) if word in body]
    return body


def tables(text):
    """The rows of all tables of a document, as dicts by column, without emphasis."""
    rows = []
    for table in re.findall(r"(?:^\|.*\n)+", text.replace("**", ""), re.M):
        head, _, *lines = (re.split(r"[ *]*\|[ *]*", line)[1:-1] for line in table.splitlines())
        rows += [dict(zip(head, line, strict=True)) for line in lines]
    return rows


RESULTS = tables((ROOT / "results" / "tables.md").read_text())


@pytest.mark.parametrize("quote", QUOTES)
def test_the_method_quotes_the_script(quote):
    source = re.sub(r'^    """.*?"""\n', "", (ROOT / "spacql.py").read_text(), flags=re.M | re.S)
    shifted = ("\n" + textwrap.indent(quote, indent) for indent in (0 * " ", 4 * " ", 16 * " "))
    assert len(QUOTES) >= 8 and any(text in source for text in shifted)


def test_sessions_show_what_python_answers():
    sessions = "\n".join(body for kind, body in METHOD if kind == "pycon")
    test = doctest.DocTestParser().get_doctest(sessions, {}, "method.md", "method.md", 0)
    assert len(test.examples) > 20 and doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("display, inline", FORMULAS)
def test_formulas_survive_markdown(display, inline):
    """Markdown takes backslashes before punctuation and underscores after it, for its own."""
    assert not re.search(r"\\[^A-Za-z]|[^A-Za-z]_|[*<>]|\]\(", display or inline)
    assert "\n" not in inline, "a formula that Markdown breaks"
    MathTextParser("path").parse("$" + re.sub(r"\\[bB]ig\b|\s", " ", display or inline) + "$")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_links_pictures_and_files_are_there(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", PROSE[path.name]):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.M) if anchor else []
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert target.exists() and (not anchor or anchor in anchors), link
    for file in re.findall(r"`((?:results|docs|envs|data|experiments|tests)/[^`<*]*)`", PROSE[path.name]):
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("name", TEXT)
def test_commands_and_flags_exist(name):
    sources = [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]
    known = {path: {*re.findall(r"^    (\w+): ", path.read_text(), re.M), "help"} for path in sources}
    known[ROOT / "experiments/original_recipe.py"] |= known[ROOT / "spacql_continuous.py"]  # which it extends
    known[ROOT] = set().union(*known.values())  # a flag without its command
    commands = re.findall(r"python (?:-m ([\w.]+)|(\w+\.py))([^`\n&]*)", TEXT[name])
    for module, file, rest in [*commands, ("", ".", PROSE[name])]:
        flags = {flag.replace("-", "_") for flag in re.findall(r"(?<!\S)`?--([a-z][\w-]*)", rest)}
        path = ROOT / (file or module.replace(".", "/") + ".py")
        assert path in known and flags <= known[path], f"{file or module} {flags}"


def not_in_results(row):
    """Whether no row of results/tables.md has all these cells, with or without more behind them."""
    begin = {key: re.compile(re.escape(row[key]) + "(?![^ ,])") for key in row}
    return not any(all(begin[key].match(other.get(key, "")) for key in row) for other in RESULTS)


def test_the_readme_has_the_results():
    rows = [row for row in tables(TEXT["README.md"]) if "spacql" in row]
    assert len(rows) >= 3 and [row for row in rows if not_in_results(row)] == []
    assert all(not_in_results(row | {key: row[key] + "1"}) for row in rows for key in row)


def test_a_run_leaves_what_is_said(data_dir, elsewhere):
    """The README names the JSON's keys and the folder's files; docs/method.md's code plays the team."""
    summary, said = SCRIPTS[0].train(data_dir, "--name mine"), tables(TEXT["README.md"])
    keys = " ".join(row["key of the JSON"] for row in said if "key of the JSON" in row)
    assert re.findall(r"`(\w+)`", keys) == list(summary)
    patterns = [row["file"].strip("`") for row in said if "file" in row]
    files = list(Path(summary["folder"]).iterdir())
    assert all(sum(file.match(pattern) for pattern in patterns) == 1 for file in files)
    played = {}
    exec(block("method.md", "checkpoint.pt"), played)
    assert played["rewards"].shape == (100, 3) and len(files) == len(patterns)
    assert {key for key in played["saved"] if not re.search(f'[`"]{key}[`"]', TEXT["method.md"])} == set()


def test_own_data_are_read(elsewhere):
    random = np.random.default_rng(0).normal
    arrays = dict(observations=random(size=(4, 26, 3, 18)).astype("f4"))
    arrays |= dict(actions=np.ones((4, 25, 3), "i1"), rewards=random(size=(4, 25, 3)).astype("f4"))
    exec(block("README.md", "mine.h5"), dict(arrays))
    dataset = read_dataset(Path("mine.h5"), "simple_spread", "discrete")
    assert all((getattr(dataset, key).numpy() == array).all() for key, array in arrays.items())


def test_a_world_of_your_own(tmp_path):
    """docs/data.md's edits in a copy: a file of data is made and a team trained."""
    for part in ("envs", "data", "utils"):
        shutil.copytree(ROOT / part, tmp_path / part)
    (tmp_path / "spacql.py").write_text((ROOT / "spacql.py").read_text())
    (tmp_path / "envs" / "meeting.py").write_text(block("data.md", "class Meeting"))
    (tmp_path / "make.py").write_text(block("data.md", "write_dataset").replace("10_000", "100"))
    for name, hunks in re.findall(r"^--- (\S+)\n(.*?)(?=^---|\Z)", block("data.md", "-TASKS"), re.M | re.S):
        for hunk in hunks.strip().split("\n\n"):
            old, new = ("\n".join(re.findall(rf"^\{sign}(.*)$", hunk, re.M)) for sign in "-+")
            source = (tmp_path / name).read_text()
            assert source.count(old) == 1, old
            (tmp_path / name).write_text(source.replace(old, new))
    small = "--env-id meeting --dataset meeting.h5 --rounds 2 --batch-size 16 --eval-episodes 8 --device cpu"
    both = f"import make, spacql; spacql.main({small.split()})"
    subprocess.run([sys.executable, "-c", both], cwd=tmp_path, check=True)


def test_they_can_be_read_in_one_sitting():
    words = {name: len(text.split()) for name, text in TEXT.items()}
    assert TEXT["README.md"].count("\n") <= 250 and words.pop("README.md") <= 2500
    assert sum(words.values()) <= 9000


def test_the_levels_of_the_data_are_the_papers():
    """The table is that of results/csv/levels.csv; with forces and torques all 16 datasets have the paper's
    mean, deviation and size, with moves the 12 have its normalised scores."""
    rows = pd.read_csv(ROOT / "results" / "csv" / "levels.csv")
    assert levels.table(rows) in TEXT["data.md"] and len(rows) == 16 + 12
    for row in rows.itertuples():
        card, (low, high) = PUBLISHED_CARDS[row.task][row.quality], PUBLISHED_SCORES[row.task]
        near = 0.03 * (high - low)
        if row.quality == "expert" and row.task in ("simple_tag", "simple_world"):
            near = 0.1 * card.mean
        assert row.transitions == card.transitions and abs(row.mean - card.mean) < near, row
        assert row.actions == "discrete" or 0.75 < row.deviation / card.deviation < 1.25, row
    for env_id in ("simple_tag", "simple_world"):  # against the shipped prey
        reached = load_policies(env_id, action_kind="continuous").facts["trained_return"]
        assert abs(reached / PUBLISHED_CARDS[env_id]["expert"].mean - 1) < 0.1
