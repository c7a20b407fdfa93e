"""A pickle read without running it.

Python's own unpickler calls whatever a pickle names, and some of its instructions reserve
memory that a few bytes only announce. This machine knows plain data and the names that it is
given; its memory and time are in proportion to the bytes it reads.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Mapping
from typing import IO, Any

from alexnet_jax.weights.errors import WeightsError

_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MARK = object()


class Call:
    """Marks, in `names`, what a pickle may call, with the arguments that it gives."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function


def load(stream: IO[bytes], names: Mapping[str, Any], persistent: Callable[[Any], Any]) -> Any:
    """The object of the pickle that begins here; the stream then stands behind it.

    Args:
      stream: its bytes, of a bounded length.
      names: what each name that may occur stands for, as "module name"; a `Call` may be called.
      persistent: makes an object from a persistent identifier.

    Returns:
      Plain data and what `names` and `persistent` give. Ordered dictionaries lose their attributes.

    Raises:
      WeightsError: a name that is not in `names`, an instruction that is not known, or a pickle
        that is cut off or makes no sense.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a backslash in a name: such a name is refused as any other
            return _run(stream, names, persistent)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"its pickle is cut off or damaged ({type(error).__name__})") from None


def _run(stream: IO[bytes], names: Mapping[str, Any], persistent: Callable[[Any], Any]) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = len(stack) - 1
        while stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise IndexError
        items = stack[start + 1 :]
        del stack[start:]
        return items

    arg: Any
    for opcode, arg, _ in pickletools.genops(stream):
        code = opcode.name
        if code in _LITERALS:
            stack.append(arg)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif code == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif code == "MARK":
            stack.append(_MARK)
        elif code in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if code == "EMPTY_DICT" else [])
        elif code == "TUPLE":
            stack.append(tuple(since_mark()))
        elif code in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(code[-1])
            stack[-count]  # an IndexError where there are fewer
            stack[-count:] = [tuple(stack[-count:])]
        elif code in ("APPEND", "APPENDS"):
            items = since_mark() if code == "APPENDS" else [stack.pop()]
            _a(list, stack[-1]).extend(items)
        elif code in ("SETITEM", "SETITEMS"):
            items = since_mark() if code == "SETITEMS" else [stack.pop(-2), stack.pop()]
            fill(_a(dict, stack[-1]), zip(items[::2], items[1::2], strict=True))
        elif code in ("GLOBAL", "STACK_GLOBAL"):
            name = arg if code == "GLOBAL" else " ".join([stack.pop(-2), stack.pop()])
            if name not in names:
                raise WeightsError(
                    f"its pickle names {name.replace(' ', '.')[:100]!r}, which is neither a tensor nor plain data, "
                    "and nothing in it was run: save the weights alone, torch.save(model.state_dict(), path)"
                )
            stack.append(names[name])
        elif code == "REDUCE":
            arguments = _a(tuple, stack.pop())
            stack.append(_a(Call, stack.pop()).function(*arguments))
        elif code == "BUILD":  # of an ordered dictionary: attributes such as _metadata, which say nothing of weights
            stack.pop()
            _a(dict, stack[-1])
        elif code == "BINPERSID":
            stack.append(persistent(stack.pop()))
        elif code == "STOP":
            return stack.pop()
        elif code not in ("PROTO", "FRAME"):
            raise WeightsError(f"its pickle has the instruction {code}, which no state dict needs: nothing was run")
    raise ValueError


def fill(found: dict[Any, Any], pairs: Any) -> dict[Any, Any]:
    """Puts pairs into a dictionary; keys that could be costly to hash are refused."""
    for key, value in pairs:
        if not isinstance(key, (str, int)):
            raise TypeError
        found[key] = value
    return found


def _a(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value
