"""What a configuration's schema is written with: keys with their meaning and check, and the error."""

from __future__ import annotations

import dataclasses
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
