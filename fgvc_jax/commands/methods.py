"""fgvc methods [--backbone=NAME] [--size=PIXELS] [--check=METHOD] [--set NAME=VALUE ...]

Lists every method with what it costs; with --check tries a method, your own file too, on made images.
"""

import argparse
import ast
import inspect
from collections.abc import Iterator

from fgvc_jax.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser("fgvc methods", description=__doc__.partition("\n\n")[2])
    parser.add_argument("--backbone", help="around which (resnet50; for --check a narrow resnet18)")
    parser.add_argument("--size", type=int, help="pixels of the image's side (448; 64 for --check)")
    parser.add_argument("--classes", type=int, default=200, help="for the list (200)")
    parser.add_argument("--check", metavar="METHOD", help="a name, or the path of a .py file")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="the method's arguments, for --check",
    )
    arguments = parser.parse_args()
    if arguments.check:
        lines = _check(arguments)
    else:
        lines = _table(arguments.backbone or "resnet50", arguments.size or 448, arguments.classes)
    for line in lines:
        print(line, flush=True)


def _check(arguments: argparse.Namespace) -> Iterator[str]:
    from fgvc_jax import contract

    yield f"{arguments.check}:"
    for line in contract.check(
        arguments.check,
        _values(arguments.set),
        backbone=arguments.backbone or "resnet18",
        image_size=arguments.size or 64,
    ):
        yield f"  {line}"
    yield "keeps the contract of fgvc_jax/methods/_base.py"


def _values(given: list[str]) -> dict[str, object]:
    """['zoom=3', 'name=abc'] -> {'zoom': 3, 'name': 'abc'}: Python's literals, else text."""
    values = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: give NAME=VALUE.")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value
    return values


def _table(backbone: str, size: int, classes: int) -> Iterator[str]:
    """For each method: what it is, passes an example, parameters beyond the backbone's, arguments, source."""
    from flax import nnx

    from fgvc_jax import backbones, methods
    from fgvc_jax.train import tree

    def make():
        return backbones.create(backbone, image_size=size, rngs=nnx.Rngs(0))

    nnx.eval_shape(make)  # a wrong name or size is told once
    yield (
        f"On {backbone} at {size} pixels with {classes} classes. A step's cost is in passes of a whole image "
        "through\nthe backbone, forward + backward, for each example; x: over the baseline's."
    )
    for name in methods.names():
        title, source = _described(name)
        yield f"\n{name}: {title}"

        def build(name=name):
            kw = {"image_size": size, "rngs": nnx.Rngs(1)}
            return methods.create(name, make(), classes, **kw)

        try:
            module = nnx.eval_shape(build)
        except (UserError, ValueError, TypeError) as error:
            yield f"  does not work here: {error}"
            continue
        forward, backward, in_use = module.cost
        params = tree.weights(module)["params"]
        own = sum(x.size for path, x in params.items() if not path.startswith("backbone/"))
        yield (
            f"  cost {forward:g} + {backward:g} passes, {(forward + 2 * backward) / 3:.3g} x; in use "
            f"{in_use:g}; updates a step {len(module.updates)}; {own / 1e6:.2f} M parameters of its own"
        )
        taps = module.taps
        yield f"  reads {', '.join(taps) if taps else 'the pooled features'}; judged by {module.evaluator}"
        own = ", ".join(f"{k}={v!r}" for k, v in methods.arguments(name).items())
        yield f"  arguments: {own}"
        if source:
            yield f"  {source}"


def _described(name: str) -> tuple[str, str]:
    """The first line of a method's file, and its line that names the source."""
    from fgvc_jax import modules

    text = inspect.getdoc(modules.load("methods", name, "method")) or ""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    source = next((part for part in paragraphs if part.startswith("Source")), "")
    return paragraphs[0], source
