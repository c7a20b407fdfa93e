"""What a configuration's schema is written with: keys with their meaning and check, and the error."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any


class ConfigError(ValueError):
    """A configuration that can't be run; the message is one line, for the person who typed it."""


def key(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    allowed: str = "",
    check: Callable[[Any], bool] = lambda value: True,
    may_change: bool = False,
) -> Any:
    """A key of the schema. `may_change`: a resumed run may have another value."""
    about = {"meaning": meaning, "unit": unit, "allowed": allowed, "check": check, "may_change": may_change}
    return dataclasses.field(default=default, metadata=about)


def one_of(default: Any, options: tuple[str, ...], meaning: str, **more: Any) -> Any:
    return key(default, meaning, allowed="one of " + ", ".join(options), check=lambda value: value in options, **more)


def positive(default: Any, meaning: str, **more: Any) -> Any:
    return key(default, meaning, allowed="at least 1", check=lambda value: value >= 1, **more)


def profile_steps(text: str) -> range:
    """The steps from FIRST to LAST, counted from 1, that "FIRST:LAST" says; none if that is not what it says."""
    found = re.fullmatch(r"([0-9]{1,12}):([0-9]{1,12})", text)
    first, last = map(int, found.groups()) if found else (0, 0)
    return range(first, last + 1) if first else range(0)
