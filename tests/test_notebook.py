"""docs/colab.ipynb, executed on digits in class folders; again in the same workdir it goes on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TOP = Path(__file__).parents[1]
QUICK = [
    "--config.model.pretrained=",
    "--config.model.backbone=resnet18",
    "--config.model.arguments.width=4",
    "--config.image.size=16",
    "--config.image.resize=16",
    "--config.finetune.batch=16",
    "--config.finetune.length=4 steps",
    "--config.finetune.validation.every=4 steps",
]


def execute(folder, workdir):
    """The text that every code cell printed, in order, and how many pictures were shown."""
    import nbclient
    import nbformat

    notebook = nbformat.read(TOP / "docs/colab.ipynb", as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    parameters.source = "\n".join(
        f"{name} = {value!r}"
        for name, value in {
            "SOURCE": str(TOP),
            "DATA": str(folder),
            "WORKDIR": str(workdir),
            "CONFIG": "my_images",
            "SETTINGS": QUICK,
        }.items()
    )
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    text = "".join(o.text for o in outputs if o.output_type == "stream")
    return text, sum("image/png" in o.get("data", {}) for o in outputs)


@pytest.mark.slow
def test_the_notebook_runs_and_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from sklearn.datasets import load_digits

    monkeypatch.setenv("PYTHONPATH", str(TOP))
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if number < 300:
            path = tmp_path / "photos" / f"digit_{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((32, 32)).save(path)
    text, pictures = execute(tmp_path / "photos", tmp_path / "run")
    assert "validation: top-1" in text and pictures == 2, text
    assert (tmp_path / "run/finetune/DONE.json").exists()
    again, _ = execute(tmp_path / "photos", tmp_path / "run")
    assert "all phases are done." in again
