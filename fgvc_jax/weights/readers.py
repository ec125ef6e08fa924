"""Files of weights, read as data: .safetensors, .npz, and torch's .pth/.pt/.bin without torch.

Nothing in a file is executed, and nothing larger than the file itself is allocated on its word
(twenty times for compressed .npz).
"""

import ast
import contextlib
import io
import math
import mmap
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

from fgvc_jax.errors import UserError
from fgvc_jax.weights import pickles

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


@dataclass(frozen=True)
class Entry:
    """An array in a file, not yet read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]


class Contents(NamedTuple):
    """A file: its format in words, and its (possibly nested) dictionary with `Entry` leaves."""

    format: str
    tree: dict[str, Any]


@contextlib.contextmanager
def explained(path: Path):
    """Whatever a broken or hostile file provokes, as a UserError that names the file and the reason."""
    try:
        yield
    except UserError:
        raise
    except pickles.Refused as refused:
        raise UserError(
            f"{path}: refused, because it asks for {refused}. Nothing was executed. A file of "
            "weights needs tensors and dictionaries only; if you trust the file and have torch, "
            "save its state_dict alone."
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except Exception as error:
        raise UserError(
            f"{path}: broken or truncated {path.suffix} file ({type(error).__name__}: {error}). "
            "Download it again and compare its size."
        ) from None


def read(path: Path) -> Contents:
    """Opens a file by its suffix and first bytes. Raises UserError where it cannot or will not.

    Values are read by `Entry.load`, which may find more that is broken (use it inside `explained`).
    """
    readers = {".safetensors": _safetensors, ".npz": _npz}
    readers |= dict.fromkeys((".pth", ".pt", ".bin"), _torch)
    if path.suffix not in readers:
        raise UserError(
            f"{path}: unknown kind of weights file {path.suffix!r}; "
            f"known are {', '.join(sorted(readers))}."
        )
    with explained(path):
        return readers[path.suffix](path)


def _safetensors(path: Path) -> Contents:
    file = safetensors.safe_open(path, "numpy")

    def entry(key: str) -> Entry:
        part = file.get_slice(key)
        dtype = part.get_dtype().lower()
        if dtype not in _NAMES:
            raise UserError(f"{path}: {key!r:.80} holds {dtype}, which is not supported.")
        return Entry(tuple(part.get_shape()), np.dtype(_NAMES[dtype]), lambda: file.get_tensor(key))

    return Contents("safetensors", {key: entry(key) for key in file.keys()})  # noqa: SIM118


_NAMES = {
    **{"f64": "float64", "f32": "float32", "f16": "float16"},
    "bf16": pickles.STORAGES["BFloat16Storage"],
    **{"i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8"},
    **{"u64": "uint64", "u32": "uint32", "u16": "uint16", "u8": "uint8", "bool": "bool"},
}


def _npz(path: Path) -> Contents:
    archive = zipfile.ZipFile(path)
    _check_archive(path, archive, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    if sum(info.file_size for info in archive.infolist()) > 20 * path.stat().st_size + 2**20:
        raise UserError(f"{path}: refused: it unpacks to over twenty times its size.")

    def entry(info: zipfile.ZipInfo) -> Entry:
        with archive.open(info) as member:
            shape, fortran, dtype, start = _npy_header(member)
        if dtype.hasobject:
            raise UserError(
                f"{path}: refused: {info.filename} holds Python objects, which are pickles, not numbers."
            )
        if start + math.prod(shape) * dtype.itemsize != info.file_size:
            raise UserError(f"{path}: {info.filename} is not as long as its header says.")

        def load() -> np.ndarray:
            flat = np.frombuffer(archive.read(info), dtype, offset=start)
            return flat.reshape(shape, order="F" if fortran else "C")

        return Entry(shape, dtype, load)

    members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    return Contents("npz", {info.filename.removesuffix(".npy"): entry(info) for info in members})


def _check_archive(path: Path, archive: zipfile.ZipFile, kinds) -> dict[str, zipfile.ZipInfo]:
    """The members by name, each there once and compressed as numpy or torch does."""
    members = {info.filename: info for info in archive.infolist()}
    if len(members) < len(archive.infolist()):
        raise UserError(f"{path}: refused: it has two members of the same name.")
    if any(info.compress_type not in kinds for info in members.values()):
        raise UserError(f"{path}: refused: its members are compressed in an unusual way.")
    return members


def _npy_header(member) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, Fortran order, dtype, length of the header) of a .npy stream."""
    prefix = member.read(8)
    if prefix[:6] != b"\x93NUMPY" or prefix[6] not in (1, 2, 3):
        raise ValueError("no .npy header")
    width, code = (2, "<H") if prefix[6] == 1 else (4, "<I")
    (length,) = struct.unpack(code, member.read(width))
    if length > 10_000:
        raise ValueError("a .npy header of unusual length")
    header = ast.literal_eval(member.read(length).decode("utf-8"))
    shape, dtype = tuple(map(int, header["shape"])), np.dtype(header["descr"])
    if any(n < 0 for n in shape):
        raise ValueError(f"a shape of {shape}")
    return shape, bool(header["fortran_order"]), dtype, 8 + width + length


def _torch(path: Path) -> Contents:
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":
        return _torch_zip(path)
    if start[:1] == b"\x80":
        return _torch_legacy(path)
    raise UserError(
        f"{path}: not a torch file: it starts with {start!r}, neither a zip archive nor a pickle."
    )


def _torch_zip(path: Path) -> Contents:
    archive = zipfile.ZipFile(path)
    infos = _check_archive(path, archive, (zipfile.ZIP_STORED,))
    roots = [name.removesuffix("data.pkl") for name in infos if name.split("/")[1:] == ["data.pkl"]]
    if len(roots) != 1:
        raise UserError(f"{path}: a zip archive, but not one that torch.save wrote.")
    root = roots[0]
    order = f"{root}byteorder"
    if order in infos and archive.read(order) != b"little":
        raise UserError(f"{path}: written on a big-endian machine, which is not supported.")

    def data(storage: pickles.Storage) -> bytes:
        return archive.read(f"{root}data/{storage.key}")

    def check(storage: pickles.Storage) -> None:
        if storage.count * storage.dtype.itemsize > infos[f"{root}data/{storage.key}"].file_size:
            raise ValueError(f"storage {storage.key} is shorter than the pickle says")

    tree = pickles.load(io.BytesIO(archive.read(f"{root}data.pkl")))
    return Contents("torch zip", _entries(tree, data, check))


def _torch_legacy(path: Path) -> Contents:
    """Five pickles (magic number, protocol, system, object, storage keys), then the storages."""
    with path.open("rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if pickles.load(view) != _LEGACY_MAGIC or pickles.load(view) != _LEGACY_PROTOCOL:
        raise UserError(f"{path}: a pickle, but not one that torch.save wrote.")
    pickles.load(view)
    tree = pickles.load(view)
    keys = pickles.load(view)

    storages: dict[str, pickles.Storage] = {}
    _entries(tree, None, lambda storage: storages.setdefault(storage.key, storage))
    places: dict[str, slice] = {}
    for key in keys:
        if type(key) is not str:
            raise ValueError("a storage whose key is no string")
        (count,) = struct.unpack("<q", view.read(8))
        size = count * storages[key].dtype.itemsize
        if count != storages[key].count or view.tell() + size > len(view):
            raise ValueError(f"storage {key} does not have the length that the pickle says")
        places[key] = slice(view.tell(), view.tell() + size)
        view.seek(size, io.SEEK_CUR)

    def check(storage: pickles.Storage) -> None:
        if storage != storages[storage.key] or storage.key not in places:
            raise ValueError(f"storage {storage.key} is missing")

    return Contents("torch legacy", _entries(tree, lambda s: view[places[s.key]], check))


def _entries(tree, data, check):
    """The pickled object with every tensor as an `Entry` over its storage, of which `check` approves."""
    done: dict[int, Any] = {}  # a container that is referred to many times is walked once

    def convert(node):
        if isinstance(node, pickles.Tensor):
            check(node.storage)
            return Entry(node.shape, node.dtype, lambda: node.load(data))
        if isinstance(node, dict):
            if id(node) not in done:
                done[id(node)] = {key: convert(value) for key, value in node.items()}
            return done[id(node)]
        return node

    return convert(tree)
