"""What a step moves to and from a chip's main memory, read from the text of the compiled program."""

from fgvc_jax.hardware import hlo

# These move nothing: names, places, and the ends of what began before.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "copy-done",
    "slice-done",
}


def read(text: str) -> int:
    """Bytes: what each operation reads and writes, a fusion being one, loops as often as they run.

    What lies in a TPU's memory on the chip is not counted; that the compiler tells, where `cost_analysis()`
    counts it. Caches are not known, so a GPU's may save some. Of canvases (uint8) a loop reads one each time:
    `fgvc_jax.data.feed.gather` looks them up one by one.

    Args:
      text: `compiled.as_text()`.
    """
    bodies, total = hlo.computations(text), 0
    for name, factor in hlo.times(bodies, within=False).items():
        arrays = {operation.name: operation.result for operation in bodies[name]}
        if factor:
            moved = (_moved(operation, arrays, loop=bool(name)) for operation in bodies[name])
            total += factor * sum(moved)
    return total


def _moved(operation: hlo.Operation, arrays: dict[str, list[hlo.Array]], loop: bool) -> int:
    kind = operation.kind
    if kind in _FREE or kind.endswith("-done"):
        return 0
    written = _main(operation.result)
    if kind == "copy-start":  # (to, from, ...): its end in main memory
        return written
    if kind == "slice-start":  # ((from), to, ...)
        return operation.result[1].bytes if len(operation.result) > 1 else 0
    for name in dict.fromkeys(operation.operands):
        for array in arrays.get(name, ()):
            if not array.on_chip:
                written += array.row if loop and array.dtype == "u8" else array.bytes
    return written


def _main(arrays: list[hlo.Array]) -> int:
    return sum(array.bytes for array in arrays if not array.on_chip)
