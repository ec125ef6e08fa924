"""The largest batch that fits, found by trying."""

import sys
from collections.abc import Callable

CLOSE = 1 / 16  # of the batch: how near to the largest the search stops


def largest(
    needed: Callable[[int], float],
    room: float,
    unit: int,
    tried: dict[int, float],
    most: int = sys.maxsize,
) -> int:
    """The largest multiple of `unit` whose need fits into `room`, to within a unit or 1/16; 0 = not one.

    Memory grows almost linearly with the batch until the compiler, near the limit, computes activations
    again; from there on it hardly grows until the compiler refuses. So each try stands where the straight
    line through the nearest two tries meets the room, but so far from the tries around it that a quarter or
    more of what is left to search falls away, and, while nothing was too large, further up each time.

    Args:
      needed: batch -> bytes; infinite where it only is known to be too much.
      room: bytes.
      tried: batch -> bytes of what has been tried, one at least; multiples of `unit`. Filled in.
      most: no larger batch is tried, but one unit, such as the number of training images.
    """
    stride, most = CLOSE, max(unit, most // unit * unit)
    while True:
        low = max((b for b, need in tried.items() if need <= room), default=0)
        high = min((b for b in tried if b > low), default=0)
        if low >= most or (high and high - low <= max(unit, low * CLOSE)):
            return low
        guess = _guess(low, high, room, tried)
        if high:
            quarter = (high - low) / 4
            guess = min(max(guess, low + quarter), high - quarter)
        else:
            guess = max(guess, low * (1 + stride))
            stride *= 2
        guess = max(int(min(guess, most) // unit) * unit, low + unit)
        tried[guess] = needed(guess)


def _guess(low: int, high: int, room: float, tried: dict[int, float]) -> float:
    known = [(batch, need) for batch, need in tried.items() if need < float("inf")]
    near = sorted(known, key=lambda point: abs(point[1] - room))[:2]
    if len(near) == 2 and near[0][1] != near[1][1]:
        (a, need_a), (b, need_b) = near
        return a + (room - need_a) * (b - a) / (need_b - need_a)
    if high:
        return (low + high) / 2
    return low * room / tried[low] if tried.get(low) else 2 * low
