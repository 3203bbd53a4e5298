"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import atriz_database

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(atriz_database.__path__, "atriz_database.")
    if not name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module_give_what_they_say(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


def test_there_are_examples() -> None:
    """So that a change of how they are found cannot pass for success."""
    found = doctest.DocTestFinder().find(importlib.import_module("atriz_database.url"))
    assert any(test.examples for test in found)
