"""Names of a package that are loaded when they are first used (PEP 562)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def loading(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return what a package has for ``__getattr__``.

    :param modules: for each name the module it is in, below this library. None of the package's own modules may have
        such a name: once loaded it would take its place.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{__package__}.{modules[name]}"), name)

    return get
