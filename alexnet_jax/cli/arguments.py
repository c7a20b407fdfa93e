"""Arguments of the subcommands, and refusals in one line."""

from __future__ import annotations

import argparse
import difflib
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Refuses in one line, with the nearest option."""

    def error(self, message: str) -> NoReturn:
        options = [name for action in self._actions for name in action.option_strings]
        wrong = next((word.partition("=")[0] for word in message.split() if word.startswith("--")), "")
        near = difflib.get_close_matches(wrong, options, 1)
        raise ValueError(message + (f"; did you mean {near[0]}?" if near and near[0] != wrong else "; see --help"))


def refuse(program: str, message: str, code: int = 2) -> int:
    """One line on standard error."""
    print(f"{program}: {message}", file=sys.stderr)
    return code
