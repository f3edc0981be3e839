"""Lets failed assertions in common.py show their values, as those of test files do."""

import pytest

pytest.register_assert_rewrite("common")
