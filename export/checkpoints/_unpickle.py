"""Pickles read as data: nothing that they name is imported, nothing that they call is called."""

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

import torch
from torch import Tensor

__all__ = ["MAX_BYTES", "StandIn", "unpickle"]

BufferOf = Callable[[str, int, int], bytearray]
"""Takes the key of a storage, its numbers and the bytes of each; returns at least as many bytes."""

MAX_BYTES = 4 * 2**30
"""No generator of this family comes near it (23 blocks have 67 MB): what does is a mistake or a bomb."""

# A net of 700 tensors needs 25,000. Each may cost a few hundred bytes of memory, and a file has room for billions.
_MAX_INSTRUCTIONS = 2**22
_MAX_NAME = 500
_MAX_DIMENSIONS = 8

_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128, "ComplexFloatStorage": torch.complex64, "UntypedStorage": torch.uint8,
}  # fmt: skip
# What has no storage class of its own and lies in untyped ones, the kinds of float8 among them.
_DTYPES = {
    f"torch.{name}": value
    for name, value in vars(torch).items()
    if isinstance(value, torch.dtype) and (value.is_floating_point or name in {"uint16", "uint32", "uint64"})
}

# Instructions whose argument, which pickletools decodes, is the object itself.
_LITERALS = {
    "BINBYTES", "BINBYTES8", "BINFLOAT", "BININT", "BININT1", "BININT2", "BINSTRING", "BINUNICODE", "BINUNICODE8",
    "BYTEARRAY8", "FLOAT", "INT", "LONG", "LONG1", "LONG4", "SHORT_BINBYTES", "SHORT_BINSTRING", "SHORT_BINUNICODE",
    "STRING", "UNICODE",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Global:
    """A name that a pickle gives instead of an object, such as ``torch.FloatStorage``: a text, never looked up."""

    name: str


class StandIn(dict[str, object]):
    """An object of whatever class: what it was made with is forgotten, its items and attributes are the entries.

    Attributes:
        name: What would have been called to make it, dotted.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


@dataclass(frozen=True, slots=True)
class _Storage:
    numbers: Tensor


def unpickle(file: IO[bytes], buffer_of: BufferOf) -> object:
    """Read one pickle of any protocol, and leave the file behind its last byte.

    Known are the functions that rebuild dense tensors of torch, dictionaries, sets (read as lists) and
    ``torch.Size``; they stand here and are ours. Everything else that is called becomes a `StandIn`. Entries of
    dictionaries whose key is neither a text nor an integer are left out, and integers become texts.

    Args:
        file: Holds the pickle at its position.
        buffer_of: Gives the bytes of a storage.

    Raises:
        ValueError: It is no pickle, or a tensor does not lie within its storage. A damaged pickle raises other
            exceptions, too, as its instructions do.
    """
    reader = _Reader(buffer_of)
    for instruction, argument, _ in pickletools.genops(file):
        reader.follow(instruction.name, argument)
    return reader.stack.pop()


class _Reader:
    """The stack machine of a pickle, on which texts lie where pickle itself puts functions and classes."""

    def __init__(self, buffer_of: BufferOf) -> None:
        self.stack: list[object] = []
        self._below: list[list[object]] = []  # what lies under each mark
        self._memo: dict[object, object] = {}
        self._buffer_of = buffer_of
        self._left = _MAX_INSTRUCTIONS

    def follow(self, instruction: str, argument: object) -> None:
        self._spend(1)
        stack = self.stack
        match instruction:
            case _ if instruction in _LITERALS:
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self._memo[argument])
            case "MARK":
                self._below.append(stack)
                self.stack = []
            case "TUPLE":
                self._replace_marked(tuple)
            case "LIST" | "FROZENSET":
                self._replace_marked(list)
            case "DICT":
                self._replace_marked(lambda pairs: _with({}, pairs))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(reversed([stack.pop() for _ in range(int(instruction[-1]))])))
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(instruction == "NEWTRUE")
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _with(stack[-1], [key, value])
            case "SETITEMS":
                pairs = self._marked()
                _with(self.stack[-1], pairs)
            case "APPEND":
                item = stack.pop()
                _extend(stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items = self._marked()
                _extend(self.stack[-1], items)
            case "GLOBAL":
                stack.append(_named(*str(argument).split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_named(module, name))
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(Global(f"copyreg extension {argument}"))
            case "REDUCE" | "NEWOBJ":
                arguments, made = stack.pop(), stack.pop()
                stack.append(self._called(made, arguments))
            case "NEWOBJ_EX":
                _, arguments, made = stack.pop(), stack.pop(), stack.pop()
                stack.append(self._called(made, arguments))
            case "OBJ":
                self._replace_marked(lambda items: self._called(items[0], tuple(items[1:])))
            case "INST":
                named = _named(*str(argument).split(" ", 1))
                self._replace_marked(lambda items: self._called(named, tuple(items)))
            case "BUILD":
                state = stack.pop()
                self._build(stack[-1], state)
            case "PERSID":
                stack.append(_persistent(argument, self._buffer_of))
            case "BINPERSID":
                stack.append(_persistent(stack.pop(), self._buffer_of))
            case "NEXT_BUFFER":
                stack.append(StandIn("a buffer outside the pickle"))
            case "DUP":
                stack.append(stack[-1])
            case "POP" if stack:
                stack.pop()
            case "POP" | "POP_MARK":
                self._marked()
            case "PROTO" | "FRAME" | "READONLY_BUFFER" | "STOP":
                pass
            case unknown:
                raise ValueError(f"the instruction {unknown} is not known")

    def _spend(self, instructions: int) -> None:
        self._left -= instructions
        if self._left < 0:
            raise ValueError(f"over {_MAX_INSTRUCTIONS} instructions, which no weights need")

    def _marked(self) -> list[object]:
        items, self.stack = self.stack, self._below.pop()
        return items

    def _replace_marked(self, made: Callable[[list[object]], object]) -> None:
        value = made(self._marked())
        self.stack.append(value)

    def _called(self, made: object, arguments: object) -> object:
        match made, arguments:
            case Global("torch._tensor._rebuild_from_type_v2"), (Global() as inner, _, arguments, _):
                return self._called(inner, arguments)
            case Global("collections.OrderedDict"), (list() as pairs,):
                # As Python 2 wrote it; Python 3 sets the entries afterwards. A list can be shared: each copy counts.
                self._spend(len(pairs))
                return _with({}, [part for pair in pairs for part in _pair(pair)])
            case Global(name), tuple() if name in _KNOWN:
                try:
                    return _KNOWN[name](*arguments)
                except TypeError as error:
                    raise ValueError(f"{name} with {len(arguments)} arguments") from error
            case Global(name), _:
                return StandIn(name)
        return StandIn(f"a call of a {type(made).__name__}")

    def _build(self, target: object, state: object) -> None:
        if not isinstance(target, StandIn):
            return
        # Attributes, or attributes and slots. Where an entry has the same name, it is the entry that holds weights.
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self._spend(len(part))
                for name, value in part.items():
                    target.setdefault(name, value)


def _named(module: object, name: object = "") -> Global:
    if isinstance(module, str) and isinstance(name, str) and len(module) + len(name) <= _MAX_NAME:
        return Global(f"{module}.{name}")
    return Global("what has no name")


def _with(target: object, pairs: list[object]) -> object:
    if not isinstance(target, dict) or len(pairs) % 2:
        raise ValueError("entries of what is no dictionary")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        # Python hashes a tuple in a tuple in a tuple until its own stack ends, and the process with it.
        if isinstance(key, str | int):
            target[str(key)] = value
    return target


def _pair(pair: object) -> "list[object] | tuple[object, ...]":
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise ValueError("an entry that is no pair")
    return pair


def _extend(target: object, items: list[object]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, StandIn):
        raise ValueError("items of what is no list")


def _persistent(identifier: object, buffer_of: BufferOf) -> object:
    match identifier:
        case ("module", made, *_):
            return made  # a class and its source, in files of before torch 1.6
        case ("storage", Global(name=name), str(key), _, int(numbers), *view):
            dtype = _STORAGES.get(name.rpartition(".")[2])
        case _:
            return StandIn("an object outside the pickle")
    if dtype is None:
        return StandIn(name)
    if not 0 <= numbers * dtype.itemsize <= MAX_BYTES:
        raise ValueError(f"a storage of {numbers} numbers, over {MAX_BYTES >> 30} GiB or below nothing")
    found = torch.empty(0, dtype=dtype)
    if numbers:
        found = torch.frombuffer(buffer_of(key, numbers, dtype.itemsize), dtype=dtype, count=numbers)
    match view:
        case [] | [None]:
            return _Storage(found)
        case [(_, int(start), int(size))] if 0 <= start <= start + size <= numbers:
            return _Storage(found[start : start + size])
    raise ValueError("a view that does not lie within its storage")


def _tensor(storage: object, offset: object, size: object, stride: object) -> Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor whose storage is none")
    numbers = storage.numbers
    shape, steps = _naturals(size), _naturals(stride)
    (start,) = _naturals((offset,))
    if len(shape) != len(steps):
        raise ValueError(f"a tensor of {len(shape)} dimensions with {len(steps)} strides")
    claimed = math.prod(shape) * numbers.element_size()
    if claimed > MAX_BYTES:
        # A stride of zero makes any shape out of one number.
        raise ValueError(f"a tensor of {claimed} bytes, over {MAX_BYTES >> 30} GiB")
    end = start + sum((n - 1) * step for n, step in zip(shape, steps, strict=True)) + 1
    if claimed and end > len(numbers):
        raise ValueError(f"a tensor that ends at number {end} of a storage of {len(numbers)}")
    return (
        numbers.as_strided(shape, steps, numbers.storage_offset() + start)
        if claimed
        else numbers.new_empty(shape)
    )


def _naturals(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > _MAX_DIMENSIONS:
        raise ValueError(f"a shape of over {_MAX_DIMENSIONS} dimensions, or none")
    if not all(isinstance(value, int) and 0 <= value < 2**63 for value in values):
        raise ValueError("a tensor of a negative or an impossible size, stride or offset")
    return tuple(values)


def _tensor_v2(storage: object, offset: object, size: object, stride: object, *others: object) -> Tensor:
    _grad, _hooks, *bits = others
    if any(bits):
        raise ValueError("a tensor that is conjugated or negated when it is used")
    return _tensor(storage, offset, size, stride)


def _tensor_v3(storage: object, offset: object, size: object, stride: object, *others: object) -> Tensor:
    grad, hooks, dtype, *bits = others
    named = _DTYPES.get(dtype.name) if isinstance(dtype, Global) else None
    if named is None or not isinstance(storage, _Storage):
        raise ValueError("a tensor whose dtype or storage is none")
    raw = storage.numbers.view(torch.uint8)
    whole = len(raw) // named.itemsize * named.itemsize
    return _tensor_v2(_Storage(raw[:whole].view(named)), offset, size, stride, grad, hooks, *bits)


def _first(inner: object, *_: object) -> object:
    return inner


def _dictionary(*_: object) -> object:
    return {}


def _list(items: object = None) -> object:
    return items if isinstance(items, list) else []


_KNOWN: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch.Size": _first,
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": _dictionary,
    "builtins.set": _list,
    "__builtin__.set": _list,
}
