"""The house's order: imports run one way, results hold output only."""

import ast

import pytest
from common import ROOT

# Later ones may import earlier ones, and themselves.
ORDER = ["utils", "envs", "data", "spacql spacql_continuous", "theory", "theory_checks experiments"]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names.split()}
FILES = [path.relative_to(ROOT) for path in sorted(ROOT.rglob("*.py"))]
FILES = [path for path in FILES if path.parts[0].removesuffix(".py") in LEVEL]


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


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_run_one_way(path):
    assert backwards(path.parts[0].removesuffix(".py"), (ROOT / path).read_text()) == []


def test_an_import_against_the_order_is_noticed():
    for source in ("import data.omar", "def f():\n    from data.datasets import a", "import os, data"):
        assert backwards("envs", source) == ["data"] and backwards("data", source) == []


def test_results_hold_no_programs():
    assert list((ROOT / "results").rglob("*.py")) == []
