"""Names of a package that are imported at their first use, so that commands start fast."""

from __future__ import annotations

TYPE_CHECKING = False  # as in `typing`, without the time to import it
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def lazy_names(package: str, names: Mapping[str, tuple[str, ...]]) -> Callable[[str], object]:
    """The ``__getattr__`` of ``package``: ``names`` are those that each module provides, or modules of ``package``."""
    modules = {name: module for module, provided in names.items() for name in provided}

    def get(name: str) -> object:
        from importlib import import_module

        module = modules.get(name)
        if module is None:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return import_module(f"{package}.{name}") if module == package else getattr(import_module(module), name)

    return get
