"""Lengths of training in the unit that suits: '12 epochs', '300 steps', '1.5M images', '2 x finetune'."""

import math
import re
from collections.abc import Mapping

from fgvc_jax.errors import UserError

_TERM = re.compile(r"^(?:([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([kM]?)\s*)?(?:x\s+)?([A-Za-z_%][\w]*)$")
_FACTOR = {"": 1, "k": 1_000, "M": 1_000_000}
UNITS = ("steps", "epochs", "images", "%")  # all other units name an earlier phase
_SECONDS = {"s": 1, "sec": 1, "min": 60, "h": 3600}
HELP = (
    "a length is a number with a unit, such as '12 epochs', '300 steps', '1.5M images', '5 %' "
    "(of the phase), or as many images as an earlier training phase used: '2 x finetune', "
    "'pairs + retrain'"
)


def terms(text: str, where: str) -> list[tuple[float, str]]:
    """Splits '2 x pairs + 100 steps' into [(2.0, 'pairs'), (100.0, 'steps')]."""
    result = []
    for term in str(text).split("+"):
        match = _TERM.match(term.strip())
        if not match:
            raise UserError(f"{where} = {text!r} is not a length: {HELP}.")
        number, factor, unit = match.groups()
        unit = {"epoch": "epochs", "step": "steps", "image": "images"}.get(unit, unit)
        result.append((float(number or 1) * _FACTOR[factor or ""], unit))
    return result


def steps(
    text: str,
    *,
    where: str,
    images_per_step: int,
    images_per_epoch: int,
    total_steps: int | None = None,
    earlier: Mapping[str, int] = {},
) -> int:
    """A length in optimizer steps, rounded up.

    Args:
      text: the length as a person wrote it.
      where: the config key, for the error message.
      images_per_step: images through one backward pass (a pair counts as two).
      images_per_epoch: images that one pass over the data puts through a backward pass.
      total_steps: length of the phase in steps; what '5 %' refers to. None where % has no meaning.
      earlier: images through a backward pass in each training phase that came before.
    """
    images = 0.0
    for number, unit in terms(text, where):
        if unit == "steps":
            images += number * images_per_step
        elif unit == "epochs":
            images += number * images_per_epoch
        elif unit == "images":
            images += number
        elif unit == "%" and total_steps is not None:
            images += number / 100 * total_steps * images_per_step
        elif unit in earlier:
            images += number * earlier[unit]
        else:
            known = ["steps", "epochs", "images", *earlier]
            raise UserError(
                f"{where} = {text!r}: unknown unit {unit!r}; here it may be one of "
                f"{', '.join(known)}. {HELP[0].upper()}{HELP[1:]}."
            )
    # A whisker off, so that '3 epochs' of exactly n steps is not rounded up by a float error.
    return math.ceil(images / images_per_step - 1e-9)


def seconds(text: str, where: str) -> float:
    """A time such as '90 s', '10 min' or '1.5 h' in seconds; '' is infinite.

    Raises:
      UserError: another text, or no time at all.
    """
    if not str(text).strip():
        return math.inf
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([a-z]+)", str(text).strip())
    if not match or match[2] not in _SECONDS or not float(match[1]):
        raise UserError(
            f"{where} = {text!r} is not a time: a number with s, min or h, such as '10 min', or '' for never."
        )
    return float(match[1]) * _SECONDS[match[2]]
