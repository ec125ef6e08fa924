"""Which of several processes holds which images, and how each learns what the others have seen in theirs."""

from typing import NamedTuple

import numpy as np

BLOCK = 16 * 2**20  # bytes from all processes together that are on their way at a time


class Share(NamedTuple):
    """One process of several, which all call the same functions in the same order."""

    process: int = 0
    of: int = 1


def owners(count: int, processes: int) -> np.ndarray:
    """int32 [N]: the process that reads and keeps each of the sorted files.

    By the fractional parts of multiples of the golden ratio (Fibonacci hashing, Knuth 1973): the shares are
    equal but for a few images, and so are those of any run of files and of every other, third, ... file, such
    as a split is. One by one in turn, a split of every fourth file would belong to one of four processes.
    """
    turns = np.arange(count, dtype=np.uint64) * np.uint64(2654435769) % np.uint64(2**32)
    return (turns * np.uint64(processes) >> np.uint64(32)).astype(np.int32)


def fill(array: np.ndarray, owner: np.ndarray, share: Share, to_all: bool = True) -> None:
    """Fills in place the rows that other processes hold; all must call it.

    Args:
      array: [N, ...], of one shape and dtype in all processes; it may be memory-mapped, as it is read and
        written in blocks.
      owner: int [N], the process that holds each row.
      to_all: or to the first process alone.
    """
    if share.of == 1:
        return
    from fgvc_jax import mesh  # here, because `fgvc check` does without JAX

    held = [np.flatnonzero(owner == process) for process in range(share.of)]
    most, rest = max(map(len, held)), array.shape[1:]
    width = array.itemsize * int(np.prod(rest))
    block = max(1, min(most, BLOCK // (width * share.of)))
    for first in range(0, most, block):
        parts = [rows[first : first + block] for rows in held]
        mine = parts[share.process]
        sent = np.zeros((block, *rest), array.dtype)
        sent[: len(mine)] = array[mine]
        # As bytes: JAX has 64 bits only where they are asked for.
        found = mesh.from_all(sent.reshape(block, -1).view(np.uint8))
        if to_all or share.process == 0:
            for rows, one in zip(parts, found, strict=True):
                array[rows] = one.view(array.dtype).reshape(block, *rest)[: len(rows)]


def of_all(content: bytes, share: Share) -> list[bytes]:
    """What each process has to say, in their order; all must call it."""
    if share.of == 1:
        return [content]
    from fgvc_jax import mesh

    lengths = mesh.from_all(np.array([len(content)], np.int32))[:, 0]
    padded = np.zeros(max(1, lengths.max()), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    found = mesh.from_all(padded)
    return [row[:length].tobytes() for row, length in zip(found, lengths, strict=True)]
