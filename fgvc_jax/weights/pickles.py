"""A pickle reader that builds tensors and containers, and cannot do anything else.

Python's unpickler calls whatever a file names. This one is a small stack machine over the opcodes
that `torch.save` writes: the names of a short list are symbols that it interprets itself, nothing
is ever imported, looked up or called, and any other name, opcode or use is refused.
"""

import pickletools
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

STORAGES = {
    "DoubleStorage": np.dtype("float64"),
    "FloatStorage": np.dtype("float32"),
    "HalfStorage": np.dtype("float16"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("int64"),
    "IntStorage": np.dtype("int32"),
    "ShortStorage": np.dtype("int16"),
    "CharStorage": np.dtype("int8"),
    "ByteStorage": np.dtype("uint8"),
    "BoolStorage": np.dtype("bool"),
}
DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"),
    *("bool", "double", "float", "half", "long", "int", "short"),
)


MAX_BYTES = 2**23  # of pickle; a thousand arrays need 150,000
MAX_RANK = 64  # numpy's

_short = reprlib.Repr()  # what is shown of an object may not grow with it
_short.maxlevel = 2
_short.maxother = 60


class Refused(Exception):
    """The pickle asks for something that a file of weights has no business asking for."""


@dataclass(frozen=True)
class Symbol:
    """A name that the pickle mentions; it stands for itself."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A buffer beside the pickle."""

    key: str
    dtype: np.dtype
    count: int


@dataclass(frozen=True)
class Tensor:
    """A strided view of a storage, checked to lie inside it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype

    def load(self, read: Callable[[Storage], bytes]) -> np.ndarray:
        flat = np.frombuffer(read(self.storage), self.dtype, self.storage.count)[self.offset :]
        strides = tuple(s * self.dtype.itemsize for s in self.strides)
        view = np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
        return view if view.size == self.storage.count else view.copy()  # not all of it kept alive


def load(stream: BinaryIO) -> Any:
    """The object of the pickle at the stream's position, its tensors as `Tensor`; stops behind it."""
    stack: list = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    start = stream.tell()

    def above_mark() -> list:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, arg, position in pickletools.genops(stream):
        if position - start > MAX_BYTES:
            raise Refused(f"over {MAX_BYTES:,} bytes of pickle")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "POP":
                stack.pop()
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(arg)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "SHORT_BINSTRING" | "BINSTRING":
                stack.append(arg)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                items = tuple(stack[-size:])
                del stack[-size:]
                stack.append(items)
            case "TUPLE":
                stack.append(tuple(above_mark()))
            case "APPEND":
                item = stack.pop()
                _expect(stack[-1], list).append(item)
            case "APPENDS":
                items = above_mark()
                _expect(stack[-1], list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _put(stack[-1], [(key, value)])
            case "SETITEMS":
                items = above_mark()
                _put(stack[-1], zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "GLOBAL":
                stack.append(_symbol(arg.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                if type(module) is not str or type(name) is not str:
                    raise Refused(f"the name {_short.repr(name)}")
                stack.append(_symbol(f"{module}.{name}"))
            case "REDUCE":
                arguments, symbol = stack.pop(), stack.pop()
                stack.append(_build(symbol, arguments))
            case "BUILD":
                # Only the attributes that torch hangs on a state dict (`_metadata`), which nothing reads.
                stack.pop()
                _expect(stack[-1], dict)
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case other:
                raise Refused(f"the pickle opcode {other}")
    raise ValueError("no end of the pickle")


def _expect(value, kind: type):
    if type(value) is not kind:
        raise Refused(f"filling a {type(value).__name__} as if it were a {kind.__name__}")
    return value


def _put(target, items) -> dict:
    """Fills a dictionary. A tuple as key is refused: hashing one that is nested takes forever."""
    for key, value in items:
        if not isinstance(key, str | int | float | None):
            raise Refused(f"a {type(key).__name__} as a key")
        if key in _expect(target, dict):
            raise Refused(f"the key {_short.repr(key)} twice")
        target[key] = value
    return target


def _symbol(name: str) -> Symbol:
    module, _, last = name.rpartition(".")
    known = name in {
        "collections.OrderedDict",
        "torch.Size",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
    }
    if known or (module == "torch" and (last in STORAGES or last in DTYPES)):
        return Symbol(name)
    raise Refused(f"the name {name!r:.80}")


def _build(symbol, arguments):
    """The result of calling the named function."""
    if not isinstance(symbol, Symbol) or type(arguments) is not tuple:
        raise Refused(f"a call of {_short.repr(symbol)}")
    match symbol.name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (list(items),):
            return _put({}, items)
        case "torch.Size", (tuple(sizes),):
            return sizes
        case "torch._utils._rebuild_parameter", (Tensor() as tensor, *_):
            return tensor
        case (
            "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2",
            (Storage() as storage, offset, tuple(shape), tuple(strides), *_),
        ):
            return _tensor(storage, offset, shape, strides)
    raise Refused(f"a call of {symbol.name!r} with unusual arguments")


def _storage(identity) -> Storage:
    match identity:
        case ("storage", Symbol(name), str(key), str(), count, *_):
            dtype = STORAGES.get(name.removeprefix("torch."))
            if dtype is not None and type(count) is int and count >= 0:
                return Storage(key, dtype, count)
    raise Refused(f"the storage {_short.repr(identity)}")


def _tensor(storage: Storage, offset, shape: tuple, strides: tuple) -> Tensor:
    numbers = (offset, *shape, *strides)
    if (
        len(shape) != len(strides)
        or len(shape) > MAX_RANK
        or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers)
    ):
        raise Refused(
            f"a tensor of shape {_short.repr(shape)}, strides {_short.repr(strides)}, "
            f"offset {_short.repr(offset)}"
        )
    size = 1
    for n in shape:
        size *= n
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if size and (last >= storage.count or size > storage.count):
        raise Refused(
            f"a tensor of shape {_short.repr(shape)} over a storage of {storage.count} elements"
        )
    return Tensor(storage, offset, shape, strides)
