"""Parameters of a workload: what can be written for one, and how it appears on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from numalab.errors import UserError, nearest
from numalab.units import parse_size

_COUNT = re.compile(r"(\d+)([kmgt]?)", re.IGNORECASE)
_COUNT_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_NUMBER_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


class ParamType(StrEnum):
    """What a parameter holds."""

    SIZE = "size"  # bytes: 4096, "64K", "512M"; powers of 1024
    COUNT = "count"  # 1000, "10k", "2M"; powers of 1000
    SECONDS = "seconds"
    CHOICE = "choice"  # one of `choices`
    SET = "set"  # some of `choices`: "a,b" or a list
    CPUS = "cpus"  # "0-3,8" or a list of numbers
    POLICY = "policy"  # "first-touch", "local", "bind:0,2-3", "interleave:all"
    FLAG = "flag"  # true or false


@dataclass(frozen=True)
class Param:
    """One parameter: `--NAME VALUE` of the program and a key of experiment files.

    Attributes:
        type: what it holds.
        default: what the program takes when it is not given; None: nothing.
        unit: of the number, "" when it has none.
        help: one line.
        choices: the words of CHOICE and SET.
        least, most: limits of SIZE, COUNT and SECONDS; None: no limit.
    """

    type: ParamType
    default: Any
    unit: str
    help: str
    choices: tuple[str, ...] = ()
    least: int = 0
    most: int | None = None

    def to_word(self, name: str, value: Any) -> str | None:
        """Return `value` as the program reads it; None when the option is to be left out.

        Raises:
            UserError: it is no such value; names the parameter and the nearest word.
        """
        return _TO_WORD[self.type](self, name, value)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        found: dict[str, Any] = {
            "type": self.type.value,
            "default": self.default,
            "unit": self.unit,
            "help": self.help,
        }
        return found | ({"choices": list(self.choices)} if self.choices else {})


def _size(param: Param, name: str, value: Any) -> str:
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise UserError(f"{name}: {value!r} is not a size (write 4096, 64K, 512M or 2G)")
    return _within(param, name, value, parse_size(value, what=name))


def parse_count(text: int | str, *, what: str) -> int:
    """Return the number that `text` names; suffixes k, M, G, T are powers of 1000.

    Raises:
        UserError: when it is not a count; names `what`.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    found = _COUNT.fullmatch(text.strip()) if isinstance(text, str) else None
    if not found:
        raise UserError(f"{what}: {text!r} is not a count (write 1000, 10k or 2M)")
    return int(found[1]) * _COUNT_FACTORS[found[2].lower()]


def _count(param: Param, name: str, value: Any) -> str:
    return _within(param, name, value, parse_count(value, what=name))


def _within(param: Param, name: str, written: Any, number: int) -> str:
    unit = f" {param.unit}" if param.unit else ""
    if number < param.least:
        raise UserError(f"{name}: {written!r} is too small (at least {param.least}{unit})")
    if param.most is not None and number > param.most:
        raise UserError(f"{name}: {written!r} is too large (at most {param.most}{unit})")
    return str(number)


def _seconds(_param: Param, name: str, value: Any) -> str:
    try:
        if isinstance(value, bool):
            raise ValueError
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1
    if not 0 < seconds < float("inf"):
        raise UserError(f"{name}: {value!r} is not a number of seconds above 0")
    return repr(seconds)


def _one_of(param: Param, name: str, value: Any) -> str:
    if value not in param.choices:
        near = nearest(str(value), param.choices)
        raise UserError(f"{name}: {value!r} is not one of {', '.join(param.choices)}{near}")
    return str(value)


def _some_of(param: Param, name: str, value: Any) -> str:
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, Sequence) or not words:
        raise UserError(f"{name}: {value!r} is not a list of {', '.join(param.choices)}")
    return ",".join(_one_of(param, name, word) for word in words)


def _number_list(name: str, value: Any, example: str) -> str:
    if isinstance(value, list | tuple) and value:
        value = ",".join(map(str, value))
    # Numbers beyond any machine's are left to the program: it knows the machine.
    if isinstance(value, bool) or not _NUMBER_LIST.fullmatch(str(value)):
        raise UserError(f"{name}: {value!r} is not a list such as {example}")
    return str(value)


def _cpus(_param: Param, name: str, value: Any) -> str:
    return _number_list(name, value, "0-3,8")


def _policy(_param: Param, name: str, value: Any) -> str:
    word, colon, nodes = str(value).partition(":")
    if not colon and word in ("first-touch", "local"):
        return word
    if not colon or word not in ("bind", "interleave"):
        known = ("first-touch", "local", "bind:NODES", "interleave:NODES")
        near = nearest(word, [each.removesuffix(":NODES") for each in known])
        raise UserError(f"{name}: {value!r} is not one of {', '.join(known)}{near}")
    return f"{word}:{'all' if nodes == 'all' else _number_list(name, nodes, '0,2-3, or all')}"


def _flag(_param: Param, name: str, value: Any) -> str | None:
    if not isinstance(value, bool):
        raise UserError(f"{name}: {value!r} is not true or false")
    return "" if value else None


_TO_WORD: dict[ParamType, Callable[[Param, str, Any], str | None]] = {
    ParamType.SIZE: _size,
    ParamType.COUNT: _count,
    ParamType.SECONDS: _seconds,
    ParamType.CHOICE: _one_of,
    ParamType.SET: _some_of,
    ParamType.CPUS: _cpus,
    ParamType.POLICY: _policy,
    ParamType.FLAG: _flag,
}
