"""What a class is called in a log: the same whether its module was imported or is the program itself."""

from __future__ import annotations

import sys


def class_name(type_: type) -> str:
    """Return the class's name behind that of its module, or alone for a builtin."""
    module = type_.__module__
    if module in ("__main__", "__mp_main__"):  # the latter in a child of multiprocessing
        module = _program()
    return type_.__qualname__ if module == "builtins" else f"{module}.{type_.__qualname__}"


def _program() -> str:
    """Return the name by which others import the module that the program was started with."""
    from pathlib import Path  # here: few programs need it

    main = sys.modules.get("__main__")
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return spec.name if spec is not None else Path(path).stem if path else "__main__"
