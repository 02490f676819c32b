"""Classes of the user's own, from a Python file that a command or a YAML file names."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from recbole_tpad.errors import InputError
from recbole_tpad.files import sha256_file

_OWN = re.compile(r"(?P<file>.+\.py)(?::(?P<name>\w+))?")


def is_own(name: str) -> bool:
    """Whether a name is ``FILE.py`` or ``FILE.py:Class``."""
    return _OWN.fullmatch(name) is not None


def own_file(name: str) -> Path:
    """Return the file of ``FILE.py`` or ``FILE.py:Class``."""
    found = _OWN.fullmatch(name)
    assert found is not None
    return Path(found["file"])


def own_sha256(name: str) -> dict[str, str]:
    """Hashes of a Python file and of the YAML file of the same name, if there is one."""
    file = own_file(name)
    return {f.name: sha256_file(f) for f in (file, file.with_suffix(".yaml")) if f.is_file()}


def check_own(name: str) -> None:
    """Refuse a file that is missing or no Python, without running it.

    Raises:
        InputError: so it is.
    """
    _parsed(own_file(name))


def own_class(name: str, fits: Callable[[type], bool], what: str) -> type:
    """Run a Python file and return its class.

    Args:
        name: ``FILE.py``, or ``FILE.py:Class`` where several classes fit.
        fits: whether a class is of the kind that is looked for.
        what: that kind, for messages.

    Raises:
        InputError: a missing file, code that fails (with the line), no or several such classes.
    """
    found = _OWN.fullmatch(name)
    assert found is not None
    file = Path(found["file"]).resolve()
    module = _module(file)
    classes = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and fits(value)
    }
    wanted = found["name"]
    if wanted is None and len(classes) == 1:
        return next(iter(classes.values()))
    if wanted in classes:
        return classes[wanted]
    known = f"Those there: {', '.join(sorted(classes))}." if classes else "There is none."
    if wanted is not None:
        raise InputError(f"{file} has no {what} '{wanted}'. {known}")
    hint = f" Say which: {file.name}:{sorted(classes)[0]}." if classes else ""
    raise InputError(f"{file} must define one {what}. {known}{hint}")


def _parsed(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
        ast.parse(text, filename=str(file))
    except OSError as error:
        raise InputError(f"Cannot read {file}: {error.strerror}.") from error
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{file} is not Python: {error}.") from error
    return text


def _module(file: Path) -> ModuleType:
    """The file as a module; a changed file is another module."""
    text = _parsed(file)
    key = hashlib.sha256(f"{file}\n{text}".encode()).hexdigest()[:16]
    name = f"own_{re.sub(r'[^0-9A-Za-z_]', '_', file.stem)}_{key}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and annotations look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)
        ]
        where = f" line {lines[-1]}" if lines else ""
        raise InputError(f"{file}{where}: {type(error).__name__}: {error}") from error
    return module
