"""The README against the code: what it quotes, the sessions it shows, its formulas, links, pictures and flags."""

import ast
import doctest
import re
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
from matplotlib.mathtext import MathTextParser

from data.datasets import read_dataset

TOP = Path(__file__).parent.parent
README = (TOP / "README.md").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
METHOD = README[README.index("\n## The method") : README.index("### Where we read or deviate")]
PROSE = FENCE.sub("", README)
FORMULAS = re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", FENCE.sub("", METHOD), re.S)


def blocks(text: str, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(text) if kind == language]


def without_docstrings(path: Path) -> list[str]:
    """The lines of a script without its functions' docstrings."""
    source = path.read_text()
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            for i in range(node.body[0].lineno - 1, node.body[0].end_lineno):
                lines[i] = None
    return [line for line in lines if line is not None]


def quoted(block: str, lines: list[str]) -> bool:
    """Whether the block is a run of these lines, but for common indentation."""
    wanted = block.rstrip("\n").split("\n")
    starts = (i for i, line in enumerate(lines) if line.strip() == wanted[0].strip())
    return any(textwrap.dedent("\n".join(lines[i : i + len(wanted)])) == "\n".join(wanted) for i in starts)


def test_the_method_quotes_the_script():
    lines, found = without_docstrings(TOP / "spacql.py"), blocks(METHOD, "python")
    assert len(found) >= 8
    assert [block for block in found if not quoted(block, lines)] == []


def test_quoting_is_checked_line_by_line():
    lines = ["def f(x):", "    y = x", "", "    return y"]
    assert quoted("y = x\n\nreturn y\n", lines) and quoted("def f(x):\n    y = x\n", lines)
    for wrong in ("y = x\nreturn y\n", "y = x \n", "def f(x):\n    return y\n", "z = x\n"):
        assert not quoted(wrong, lines)


def test_sessions_show_what_python_answers():
    sessions = "\n".join(blocks(METHOD, "pycon"))
    test = doctest.DocTestParser().get_doctest(sessions, {}, "README.md", "README.md", 0)
    assert len(test.examples) > 20
    answers = []
    assert doctest.DocTestRunner().run(test, out=answers.append).failed == 0, "".join(answers)


@pytest.mark.parametrize("display, inline", FORMULAS)
def test_formulas_survive_markdown(display, inline):
    """Markdown takes backslashes before punctuation, and underscores after it, for its own; mathtext knows less than
    GitHub's renderer, so what it can read is well-formed."""
    formula = display or inline
    assert not re.search(r"\\[^A-Za-z]|[^A-Za-z]_|[*<>]|\]\(", formula)
    plain = re.sub(r"\\[bB]ig\b|\s", " ", formula)
    MathTextParser("path").parse(f"${plain}$")


def test_every_line_closes_its_formulas():
    outside = re.sub(r"\$\$.+?\$\$", "", FENCE.sub("", METHOD), flags=re.S)
    assert [line for line in outside.splitlines() if line.count("$") % 2] == []


def test_links_and_pictures_lead_somewhere():
    headings = re.findall(r"^#+ (.+)$", PROSE, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)\s]+)\)", PROSE)
    assert len(links) > 20
    for link in links:
        assert link[1:] in anchors if link.startswith("#") else (TOP / link).is_file(), link


def test_flags_exist():
    scripts = [*TOP.glob("*.py"), *TOP.glob("data/*.py"), *TOP.glob("results/*.py"), TOP / "tests" / "benchmark.py"]
    known = {name for path in scripts for name in re.findall(r"^    (\w+): ", path.read_text(), re.M)} | {"help"}
    flags = set(re.findall(r"(?<![\w-])--([a-z][a-z0-9-]*)", README))
    assert len(flags) > 20
    assert {flag for flag in flags if flag.replace("-", "_") not in known} == set()


def test_own_data_as_shown_are_read(tmp_path, monkeypatch):
    """The README's code, given arrays of the shapes that it names, writes a file that the scripts take."""
    monkeypatch.chdir(tmp_path)
    (code,) = [block for block in blocks(README, "python") if "mine.h5" in block]
    rng, (E, T, N, numbers) = np.random.default_rng(0), (4, 25, 3, 18)
    arrays = dict(
        observations=rng.normal(size=(E, T + 1, N, numbers)).astype(np.float32),
        actions=rng.integers(0, 5, (E, T, N)).astype(np.int8),
        rewards=rng.normal(size=(E, T, N)).astype(np.float32),
    )
    exec(code, dict(arrays, E=E, T=T))
    dataset = read_dataset(Path("mine.h5"), "simple_spread", "discrete")
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(dataset, name).numpy(), array)
    with h5py.File("mine.h5") as file:
        assert dataset.facts["quality"] == file.attrs["quality"]


RESULTS = {  # section: the heads of its tables that are copies of rows of results/tables.md
    "### The paper's claims": "| the paper's claim |",
    "### Discrete actions": "| task | data (mean score) |",
    "### Coordination": "| task | data | rounds |",
    "### The expert gap": "| task | data | rounds |",
    "### Forces and torques": "| task | data (mean score) |",
}


def copied_rows(readme: str, section: str) -> list[str]:
    """The rows of a section's copied table."""
    lines = readme[readme.index(f"\n{section}\n") :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(RESULTS[section]))
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return lines[start + 2 : end]


def stale_rows(readme: str, section: str, tables: list[str]) -> list[str]:
    """Copied rows that are not in results/tables.md; its last columns may be left out."""
    return [row for row in copied_rows(readme, section) if not any(line.startswith(row) for line in tables)]


@pytest.mark.parametrize("section", RESULTS)
def test_copied_tables_are_up_to_date(section):
    tables = (TOP / "results" / "tables.md").read_text().splitlines()
    rows = copied_rows(README, section)
    assert len(rows) >= 3
    assert stale_rows(README, section, tables) == []
    changed = README.replace(rows[1], re.sub(r"\d\b", lambda digit: str((int(digit[0]) + 1) % 10), rows[1]))
    assert stale_rows(changed, section, tables) == [copied_rows(changed, section)[1]], "a stale row is noticed"
