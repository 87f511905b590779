"""Reading an experiment file: TOML tables with checked types, where every complaint names file and key.

Complaints are collected, so that a person sees all of them at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from numalab.errors import UserError, nearest
from numalab.units import parse_size

T = TypeVar("T")
_NAMES = {
    str: "a string",
    int: "an integer",
    bool: "true or false",
    float: "a number",
    list: "an array",
    dict: "a table",
}


class Problems:
    """What is wrong with one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[str] = []

    def add(self, key: str, message: str) -> None:
        """Note that the value at `key` (a path such as "matrix.policy[1]") is wrong."""
        self.found.append(f"{self.file}: {key}: {message}" if key else f"{self.file}: {message}")

    def raise_any(self) -> None:
        """Raise one UserError with everything noted so far, if there is anything."""
        if self.found:
            raise UserError("\n".join(self.found))


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        UserError: no such file, not readable, or not TOML (with line and column).
    """
    try:
        return tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML: {error}") from None


def type_name(value: object) -> str:
    """Return the TOML word for the type of `value`, e.g. "a string"."""
    return _NAMES.get(type(value), type(value).__name__)


def fits(value: object, wanted: type) -> bool:
    """Whether `value` is of type `wanted` as TOML sees it: true is no integer, an integer is a number."""
    if wanted is float:
        return type(value) in (int, float)
    return type(value) is wanted


class Table:
    """One TOML table being read; `close()` complains about the keys nobody asked for."""

    def __init__(self, value: dict[str, Any], key: str, problems: Problems) -> None:
        self.value = value
        self.key = key
        self.problems = problems
        self._known: list[str] = []

    def path(self, key: str) -> str:
        """Return the full path of `key` of this table."""
        return f"{self.key}.{key}" if self.key else key

    def get(self, key: str, wanted: type[T], default: T, *, required: bool = False) -> T:
        """Return the value of `key`, or `default` when absent or of another type (which is noted)."""
        self._known.append(key)
        if key not in self.value:
            if required:
                self.problems.add(self.path(key), "is missing")
            return default
        value = self.value[key]
        if not fits(value, wanted):
            self.problems.add(self.path(key), f"must be {_NAMES[wanted]}, not {type_name(value)} ({_short(value)})")
            return default
        return value  # type: ignore[no-any-return]

    def count(self, key: str, default: int, *, least: int) -> int:
        """Return an integer that is at least `least`."""
        return self._at_least(key, self.get(key, int, default), default, least)

    def seconds(self, key: str, default: float) -> float:
        """Return a time in seconds, more than 0."""
        value = self.get(key, float, default)
        if value <= 0:
            self.problems.add(self.path(key), f"must be more than 0 seconds, not {value}")
            return default
        return value

    def size(self, key: str, default: str, *, required: bool = False) -> int:
        """Return bytes, written as an integer or as "512M"."""
        self._known.append(key)
        if key not in self.value and required:
            self.problems.add(self.path(key), "is missing")
        return self._size(self.value.get(key, default), key, default)

    def words(self, key: str, default: Iterable[str] = (), *, required: bool = False) -> tuple[str, ...]:
        """Return an array of strings without repetitions; a lone string is an array of one."""
        if isinstance(self.value.get(key), str):
            self._known.append(key)
            return (self.value[key],)
        value = self.get(key, list, list(default), required=required)
        good: list[str] = []
        for number, word in enumerate(value):
            where = f"{self.path(key)}[{number}]"
            if not isinstance(word, str):
                self.problems.add(where, f"must be a string, not {type_name(word)} ({_short(word)})")
            elif word in good:
                self.problems.add(where, f"{word!r} is there twice")
            else:
                good.append(word)
        if required and key in self.value and not value:
            self.problems.add(self.path(key), "must name at least one")
        return tuple(good)

    def table(self, key: str) -> Table:
        """Return the sub-table `key`, empty when absent."""
        return Table(self.get(key, dict, {}), self.path(key), self.problems)

    def tables(self, key: str) -> list[Table]:
        """Return the array of tables `key`."""
        found = []
        for number, value in enumerate(self.get(key, list, [])):
            where = f"{self.path(key)}[{number}]"
            if isinstance(value, dict):
                found.append(Table(value, where, self.problems))
            else:
                self.problems.add(where, f"must be a table, not {type_name(value)} ({_short(value)})")
        return found

    def children(self) -> dict[str, Table]:
        """Return all sub-tables by name; every key of this table must be one."""
        return {name: self.table(name) for name in self.value}

    def rest(self) -> dict[str, Any]:
        """Return the keys nobody has asked for, and leave their checking to the caller."""
        left = {key: value for key, value in self.value.items() if key not in self._known}
        self._known += left
        return left

    def close(self) -> None:
        """Note every key that was never asked for."""
        for key in self.value:
            if key not in self._known:
                self.problems.add(self.path(key), f"unknown key{nearest(key, self._known)}")

    def _at_least(self, key: str, value: int, default: int, least: int) -> int:
        if value < least:
            self.problems.add(self.path(key), f"must be at least {least}, not {value}")
            return default
        return value

    def _size(self, value: object, key: str, default: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            self.problems.add(self.path(key), f"must be a size, not {type_name(value)} ({_short(value)})")
            return parse_size(default)
        try:
            return parse_size(value, what=self.path(key))
        except UserError as error:
            self.problems.found.append(f"{self.problems.file}: {error}")
            return parse_size(default)


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 40 else f"{text[:37]}..."
