"""Evaluators: how a kind of model is validated, scored at the end and selected; one file each.

A method names its evaluator. Each file has

- `check(manifest)`: raises UserError for data that it cannot judge a model on;
- `validate(outputs, labels, classes) -> metrics`: on the outputs of `Method.predict` over a validation split,
  with 'selection', higher is better, by which the best checkpoint is chosen;
- `final(scorer, names) -> result`: the rows of the evaluation phase for the training phases of this kind.
"""

from types import ModuleType

from fgvc_jax import modules


def names() -> list[str]:
    return modules.names("evaluators")


def get(name: str, where: str = "evaluator") -> ModuleType:
    """An evaluator, by name or by the path of a .py file; UserError where there is none."""
    return modules.load("evaluators", name, where)
