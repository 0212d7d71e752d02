"""An interpreter for the few pickle opcodes of published EPD tables.

Python's unpickler calls what a file tells it to call, and even a restricted one hashes, compares and grows what a file
made. Published tables need 30 opcodes and know 11 global names, so this machine has those and nothing that it could
call, import or recurse into: a global is a `Name`, and what REDUCE does is looked up by that name in a `Dialect`.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_OPERATIONS = 100_000  # published files have a few hundred
MAX_CALLS = 1_000  # published files have about 60


class PublishedTableError(ValueError):
    """A file that is no published table: the message names the file, what was found, what is allowed, and a remedy."""


class Name(NamedTuple):
    """A global that a pickle refers to: two strings, never imported."""

    module: str
    name: str


@dataclass(eq=False)
class Inert:
    """What stands for an object of a foreign class: the name of that class, nothing else."""

    cls: Name


@dataclass(frozen=True)
class Dialect:
    """What one kind of stream may contain: opcodes, globals, what REDUCE of a global does, and the inert classes."""

    protocol: int
    opcodes: frozenset[str]
    globals: frozenset[Name]
    calls: Mapping[Name, Callable[[tuple[object, ...]], object]] = field(default_factory=dict)
    classes: frozenset[Name] = frozenset()


def fault(content: str, allowed: str) -> PublishedTableError:
    """An error that says what the file contains and what is allowed; `read_published` adds file and remedy."""
    return PublishedTableError(f"found {content}; allowed is {allowed}")


def shown(value: object) -> str:
    """A short description of a hostile value: never the repr of a container, which may be endless."""
    if isinstance(value, (str, bytes)):
        return ascii(value[:60])
    if isinstance(value, Name):
        return f"{value.module[:60]}.{value.name[:60]}"
    if isinstance(value, int):
        return repr(value) if abs(value) < 2**64 else "a huge integer"
    return repr(value) if value is None or isinstance(value, float) else f"a {type(value).__name__}"


def _listed(names: frozenset[Name]) -> str:
    return ", ".join(sorted(".".join(n) for n in names)) or "none"


class Machine:
    """Runs one pickle of `data` from byte `start`; afterwards `end` is where it stopped.

    Raises:
        PublishedTableError: for any opcode, name, call or length outside of the dialect.
    """

    def __init__(self, data: bytes, dialect: Dialect, start: int = 0) -> None:
        self.data, self.dialect, self.end = data, dialect, start
        self.stack: list[object] = []
        self.below: list[list[object]] = []  # the stacks under each open MARK
        self.memo: dict[int, object] = {}
        self.calls = 0

    def run(self) -> object:
        """The one object of the pickle."""
        if self.take(2, "the protocol") != bytes([0x80, self.dialect.protocol]):
            raise fault(f"no pickle at byte {self.end - 2}", f"a pickle of protocol {self.dialect.protocol}")
        for _ in range(MAX_OPERATIONS):
            name = self.opcode()
            if name == "STOP":
                return self.result()
            self.execute(name)
        raise fault(f"more than {MAX_OPERATIONS} operations", "the few hundred of a table")

    def result(self) -> object:
        if self.below or len(self.stack) != 1:
            raise fault(f"{len(self.stack)} objects and {len(self.below)} open marks at the end", "one object")
        return self.stack[0]

    def opcode(self) -> str:
        code = self.take(1, "an opcode")[0]
        name = OPCODE_NAMES.get(code, f"0x{code:02x}")
        if name not in self.dialect.opcodes:
            raise fault(f"the opcode {name} at byte {self.end - 1}", " ".join(sorted(self.dialect.opcodes)))
        return name

    def take(self, length: int, what: str) -> bytes:
        """The next bytes, after proving that they are there: a declared length allocates nothing."""
        left = len(self.data) - self.end
        if length > left:
            raise fault(f"{what} of {length} bytes at byte {self.end}", f"at most the {left} bytes that are left")
        self.end += length
        return self.data[self.end - length : self.end]

    def number(self, layout: str, what: str) -> int:
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))[0]

    def text(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise fault(f"{shown(raw)} as text before byte {self.end}", "UTF-8") from error

    def execute(self, name: str) -> None:
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in NUMBERS:
            self.stack.append(self.number(NUMBERS[name], name))
        elif name in LENGTHS:
            raw = self.take(self.number(LENGTHS[name], name), name)
            self.stack.append(CONTENTS[name](self, raw))
        elif name in INDEXED:
            layout, operation = INDEXED[name]
            operation(self, self.number(layout, name))
        else:
            OPERATIONS[name](self)

    def pop(self) -> object:
        if not self.stack:
            raise fault(f"an operation on nothing before byte {self.end}", "operations on what was pushed before")
        return self.stack.pop()

    def top(self) -> object:
        value = self.pop()
        self.stack.append(value)
        return value

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[object]:
        if not self.below:
            raise fault(f"an operation without a MARK before byte {self.end}", "one after MARK")
        items, self.stack = self.stack, self.below.pop()
        return items

    def tuple_from_mark(self) -> None:
        items = tuple(self.pop_to_mark())
        self.stack.append(items)

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise fault(f"a reference to object {index} before byte {self.end}", f"the {len(self.memo)} stored so far")
        self.stack.append(self.memo[index])

    def frame(self, length: int) -> None:
        left = len(self.data) - self.end
        if length > left:
            raise fault(f"a frame of {length} bytes at byte {self.end}", f"at most the {left} bytes that are left")

    def line(self) -> str:
        stop = self.data.find(b"\n", self.end, self.end + 200)
        if stop < 0:
            raise fault(f"a name without an end at byte {self.end}", "a line of at most 200 bytes")
        return self.text(self.take(stop + 1 - self.end, "a line")[:-1])

    def push_global(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str or (module, name) not in self.dialect.globals:
            raise fault(f"the global {shown(module)} {shown(name)}", _listed(self.dialect.globals))
        self.stack.append(Name(module, name))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.push_global(module, name)

    def push_tuple(self, length: int) -> None:
        self.stack.append(tuple(reversed([self.pop() for _ in range(length)])))

    def set_items(self, pairs: list[object]) -> None:
        target = self.top()
        if type(target) is not dict or len(pairs) % 2:
            raise fault(f"{len(pairs)} keys and values set on {shown(target)}", "pairs, set on a dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) is not str:  # because hashing a tuple of tuples of ... can take forever
                raise fault(f"{shown(key)} as a key", "strings as keys")
            if key in target:
                raise fault(f"the key {shown(key)} twice", "each key once")
            target[key] = value

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def extend(self, items: list[object]) -> None:
        target = self.top()
        if type(target) is not list:
            raise fault(f"items appended to {shown(target)}", "items appended to a list")
        target.extend(items)

    def reduce(self) -> None:
        arguments, callee = self.pop(), self.pop()
        self.calls += 1
        if self.calls > MAX_CALLS:
            raise fault(f"more than {MAX_CALLS} calls", "the 60 or so of a table")
        if type(callee) is not Name or callee not in self.dialect.calls or type(arguments) is not tuple:
            raise fault(f"a call of {shown(callee)}", f"calls of {_listed(frozenset(self.dialect.calls))}")
        self.stack.append(self.dialect.calls[callee](arguments))

    def new_object(self) -> None:
        arguments, cls = self.pop(), self.pop()
        if type(cls) is not Name or cls not in self.dialect.classes or type(arguments) is not tuple or arguments:
            raise fault(f"an object of {shown(cls)}", f"objects of {_listed(self.dialect.classes)}, without arguments")
        self.stack.append(Inert(cls))

    def build(self) -> None:
        """Checks a state and forgets it: nothing in the state of an activation is a learned number."""
        state, target = self.pop(), self.top()
        if type(target) is not Inert or type(state) is not dict:
            raise fault(f"{shown(target)} built with {shown(state)}", f"{_listed(self.dialect.classes)} with a dict")

    def persistent(self) -> None:
        value = self.top()
        if type(value) is not tuple or len(value) != 6:
            raise fault(f"{shown(value)} as a persistent id", "the 6 entries that describe a storage")


OPCODE_NAMES = {ord(op.code): op.name for op in pickletools.opcodes}
CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
CONSTANTS["EMPTY_SET"] = frozenset()  # no opcode here could add to it
NUMBERS = {"BININT": "<i", "BININT1": "<B", "BININT2": "<H", "BINFLOAT": ">d"}
LENGTHS = {"SHORT_BINUNICODE": "<B", "BINUNICODE": "<I", "BINBYTES": "<I", "LONG1": "<B"}
CONTENTS: dict[str, Callable[[Machine, bytes], object]] = {
    "SHORT_BINUNICODE": Machine.text,
    "BINUNICODE": Machine.text,
    "BINBYTES": lambda m, raw: raw,
    "LONG1": lambda m, raw: int.from_bytes(raw, "little", signed=True),
}
INDEXED: dict[str, tuple[str, Callable[[Machine, int], None]]] = {
    "FRAME": ("<Q", Machine.frame),
    "BINGET": ("<B", Machine.get),
    "BINPUT": ("<B", Machine.put),
}
OPERATIONS: dict[str, Callable[[Machine], None]] = {
    "EMPTY_DICT": lambda m: m.stack.append({}),
    "EMPTY_LIST": lambda m: m.stack.append([]),
    "MEMOIZE": lambda m: m.put(len(m.memo)),
    "MARK": Machine.mark,
    "TUPLE": Machine.tuple_from_mark,
    "TUPLE1": lambda m: m.push_tuple(1),
    "TUPLE2": lambda m: m.push_tuple(2),
    "TUPLE3": lambda m: m.push_tuple(3),
    "SETITEM": Machine.set_item,
    "SETITEMS": lambda m: m.set_items(m.pop_to_mark()),
    "APPEND": lambda m: m.extend([m.pop()]),
    "APPENDS": lambda m: m.extend(m.pop_to_mark()),
    "GLOBAL": lambda m: m.push_global(m.line(), m.line()),
    "STACK_GLOBAL": Machine.stack_global,
    "REDUCE": Machine.reduce,
    "NEWOBJ": Machine.new_object,
    "BUILD": Machine.build,
    "BINPERSID": Machine.persistent,
}
