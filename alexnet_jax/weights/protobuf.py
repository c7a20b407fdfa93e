"""Protocol Buffers' messages read by a table of the fields that matter, from the binary and the text form.

A table has the number, name and kind of fields; a message becomes a dictionary of the values of
each name, in order; other fields are passed over. Values of `FLOATS` and `DOUBLES` stay in the
file, so that memory is in proportion to the number of fields, which is bounded.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from alexnet_jax.weights.errors import WeightsError

TEXT, INT, BOOL, FLOAT, ENUM, FLOATS, DOUBLES = "text", "int", "bool", "float", "enum", "floats", "doubles"
# A network of 30 layers has about 1,000 fields.
MOST_FIELDS = 1 << 15
_LONGEST_TEXT = 1024  # of the name of a layer, an array, a type
_DEEPEST = 16  # levels of the text form; the binary form goes no deeper than its table
_WIRES = {TEXT: 2, INT: 0, BOOL: 0, ENUM: 0, FLOAT: 5}

Table = Mapping[int, tuple[str, Any]]  # by number: name and kind, which may be the table of a message
Message = dict[str, list[Any]]


class Run(NamedTuple):
    """Values in a file: `size` of them, the first at `offset`, `stride` bytes from one to the next."""

    offset: int
    size: int
    stride: int


class _Damaged(WeightsError):
    def __init__(self) -> None:
        super().__init__("it is cut off or damaged: copy or download it again")


def decode(data: np.ndarray, table: Table) -> Message:
    """The message whose binary form these bytes are, (N,) of uint8.

    Raises:
      WeightsError: they are no such message, or have more fields than any network's.
    """
    return _Binary(data).message(table, 0, data.size)


def _checked(name: str) -> str:
    """A name that can stand in an error."""
    if len(name) > _LONGEST_TEXT or not name.isprintable():
        raise WeightsError(f"it has a name that makes no sense, {name[:20]!r} …: the file is damaged")
    return name


class _Binary:
    def __init__(self, data: np.ndarray):
        self.data, self.bytes, self.left = data, data.data, MOST_FIELDS

    def message(self, table: Table, position: int, end: int) -> Message:
        found: Message = {}
        while position < end:
            self._count()
            start = position
            tag, position = self._varint(position, end)
            number, wire = tag >> 3, tag & 7
            value, after = 0, position
            if wire == 0:
                value, after = self._varint(position, end)
            elif wire == 2:
                size, position = self._varint(position, end)
                after = position + size
            elif wire in (1, 5):
                after = position + (8 if wire == 1 else 4)
            if not number or wire not in (0, 1, 2, 5) or after > end:  # 3 and 4 are groups, which Caffe has none of
                raise _Damaged
            if number in table:
                name, kind = table[number]
                values = found.setdefault(name, [])
                if kind in (FLOATS, DOUBLES):
                    run, after = self._run(kind, wire, start, position, after, end)
                    values.append(run)
                else:
                    values.extend(self._values(kind, wire, value, position, after))
            position = after
        return found

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise WeightsError(f"it has more than {MOST_FIELDS:,} fields: no AlexNet needs that")

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                break
            byte = self.bytes[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, position
        raise _Damaged

    def _values(self, kind: Any, wire: int, value: int, start: int, end: int) -> Iterator[Any]:
        """The values of one field that is not an array."""
        if kind == INT and wire == 2:  # packed
            while start < end:
                self._count()
                value, start = self._varint(start, end)
                yield value - (value >> 63 << 64)
        elif wire != (_WIRES[kind] if isinstance(kind, str) else 2):
            raise _Damaged
        elif not isinstance(kind, str):
            yield self.message(kind, start, end)
        elif kind == TEXT:
            yield _checked(bytes(self.bytes[start : min(end, start + _LONGEST_TEXT + 1)]).decode("utf-8", "replace"))
        elif kind == FLOAT:
            yield struct.unpack_from("<f", self.bytes, start)[0]
        else:
            yield bool(value) if kind == BOOL else value - (value >> 63 << 64)

    def _run(self, kind: str, wire: int, tag: int, start: int, after: int, end: int) -> tuple[Run, int]:
        """Packed values, or one that is not with all that follow it in the same way; and where they end."""
        size = 4 if kind == FLOATS else 8
        if wire == 2 and (after - start) % size == 0:
            return Run(start, (after - start) // size, size), after
        if wire != (5 if kind == FLOATS else 1):
            raise _Damaged
        stride = after - tag
        count, chunk = 1, 1 << 10
        heads = self.data[tag : end - stride + 1 : stride]
        while start - tag == 1 and count < heads.size:
            others = np.flatnonzero(heads[count : count + chunk] != heads[0])
            if others.size:
                count += int(others[0])
                break
            count, chunk = min(count + chunk, heads.size), min(2 * chunk, 1 << 20)
        return Run(start, count, stride), after + (count - 1) * stride


_TOKEN = re.compile(
    r"""\s+|\#[^\n]*
    |(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<word>[^\s\#"'{}<>\[\]:,;]+)
    |(?P<mark>[{}<>\[\]:,;])""",
    re.VERBOSE,
)
_CLOSE = {"{": "}", "<": ">"}


def parse(text: str, table: Table) -> Message:
    """The message whose text form this is.

    Raises:
      WeightsError: it is not of that form; the message says in which line.
    """
    return _Text(text).message(table, None, 0)


class _Text:
    def __init__(self, text: str):
        self.text, self.position, self.left = text, 0, MOST_FIELDS
        self.next()

    def next(self) -> tuple[str, str]:
        """Takes a token, its kind and its characters, and looks at the one after it."""
        taken = getattr(self, "ahead", ("", ""))
        self.ahead = ("end", "")
        while self.position < len(self.text):
            match = _TOKEN.match(self.text, self.position)
            if match is None:
                raise self.wrong()
            self.position = match.end()
            if match.lastgroup:
                self.ahead = (match.lastgroup, match[0])
                break
        return taken

    def wrong(self) -> WeightsError:
        line = self.text.count("\n", 0, self.position) + 1
        return WeightsError(f"line {line} is not of Protocol Buffers' text form, as a .prototxt is")

    def message(self, table: Table, close: str | None, depth: int) -> Message:
        found: Message = {}
        fields = dict(table.values())
        while self.ahead != ("end", "") if close is None else self.ahead[1] != close:
            self.left -= 1
            kind, name = self.next()
            if kind != "word" or self.left < 0 or depth > _DEEPEST:
                raise self.wrong()
            if self.ahead[1] == ":":
                self.next()
            elif self.ahead[1] not in _CLOSE:
                raise self.wrong()
            for value in self.values(fields.get(name), depth):
                if name in fields:
                    found.setdefault(name, []).append(value)
            if self.ahead[1] in (",", ";"):
                self.next()
        if close is not None:
            self.next()
        return found

    def values(self, kind: Any, depth: int) -> Iterator[Any]:
        """One value, or those of a list in brackets."""
        if self.ahead[1] != "[":
            yield self.value(kind, depth)
            return
        self.next()
        while self.ahead[1] != "]":
            yield self.value(kind, depth)
            if self.ahead[1] == ",":
                self.next()
            elif self.ahead[1] != "]":
                raise self.wrong()
        self.next()

    def value(self, kind: Any, depth: int) -> Any:
        form, word = self.next()
        if word in _CLOSE:
            return self.message(kind if isinstance(kind, Mapping) else {}, _CLOSE[word], depth + 1)
        if form not in ("text", "word") or isinstance(kind, Mapping):
            raise self.wrong()
        if form == "text":
            word = word[1:-1]
            while self.ahead[0] == "text":  # pieces side by side are one
                word += self.next()[1][1:-1]
        try:
            if kind == INT:
                return int(word, 0)
            if kind == FLOAT:
                return float(word.removesuffix("f"))
            if kind == BOOL:
                return {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}[word]
        except (ValueError, KeyError):
            raise self.wrong() from None
        return word if kind is None else _checked(word)
