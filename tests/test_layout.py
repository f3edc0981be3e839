"""The house's order: imports run one way, results hold output only, the scripts' lines are short."""

import ast

import pytest
from common import ROOT

# Later ones may import earlier ones, and themselves.
ORDER = ["utils", "envs", "data", "spacql spacql_continuous", "theory", "theory_checks experiments"]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names.split()}
FILES = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if path.relative_to(ROOT).parts[0].removesuffix(".py") in LEVEL
]


def imported(source):
    """The modules that source text imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def backwards(name, source):
    """The imports of a file of part `name` that run against the order."""
    tops = {module.split(".")[0] for module in imported(source)}
    return sorted(top for top in tops if LEVEL.get(top, -1) > LEVEL[name])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    assert backwards(path.relative_to(ROOT).parts[0].removesuffix(".py"), path.read_text()) == []


def test_an_import_against_the_order_is_noticed():
    for source in (
        "import data.omar",
        "def f():\n    from data.datasets import load_dataset",
        "import os, data",
    ):
        assert backwards("envs", source) == ["data"] and backwards("data", source) == []


def test_results_hold_no_programs():
    assert list((ROOT / "results").rglob("*.py")) == []


@pytest.mark.parametrize("script", ["spacql.py", "spacql_continuous.py", "theory_checks.py"])
def test_lines_are_short(script):
    assert [line for line in (ROOT / script).read_text().splitlines() if len(line) > 110] == []
