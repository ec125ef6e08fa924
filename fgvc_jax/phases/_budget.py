"""The cost of two classifiers, for the line that compares them."""

from fgvc_jax import phases
from fgvc_jax.context.run import Run
from fgvc_jax.phases._training import freezes_backbone


def of(run: Run, pipeline: str, control: str) -> dict:
    """Images through a backward pass and passes through the backbone that each is made of.

    A pass is one image forward and backward; a forward pass alone counts a third, SAM doubles it.

    Returns:
      {'images': {'pipeline', 'control'}, 'passes': {'pipeline', 'control'}, 'remarks': [sentences]}.
    """
    found = {phase.name: phase for phase in phases.of(run.config)}
    made_of = {
        "pipeline": _lineage(found, pipeline),
        "control": _lineage(found, control),
    }
    images, passes = (
        {who: round(sum(count(run.results[n]) for n in names)) for who, names in made_of.items()}
        for count in (_images, _passes)
    )

    def frozen(name: str) -> bool:
        return freezes_backbone(run.config[name])

    trained = [
        name
        for name in phases.trained(run.config, made_of["pipeline"])
        if name not in made_of["control"] and not frozen(name)
    ]
    remarks = []
    if frozen(control) and trained:
        remarks.append(
            f"The backbone was frozen in {control}, while {' and '.join(trained)} trained it: the control "
            "had less freedom."
        )
    return {"images": images, "passes": passes, "remarks": remarks}


def _lineage(found: dict[str, phases.Phase], name: str) -> list[str]:
    """The phases that a model is made of, itself included, in the order of the run."""
    made_of, todo = set(), [name]
    while todo:
        one = todo.pop()
        if one not in made_of:
            made_of.add(one)
            todo += [read.phase for read in found[one].reads() if not read.length]
    return [one for one in found if one in made_of]


def _images(result: dict) -> int:
    return result.get("images", 0)


def _passes(result: dict) -> float:
    return result.get("passes", 0) + result.get("images_forward", 0) / 3
