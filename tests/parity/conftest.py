"""The torch references. A CPU torch beside a torchvision built for CUDA needs a word of help."""

import importlib
import json
import os
import sys
from pathlib import Path


def _import_torchvision():
    """Imports torchvision where there is one; returns what must stay alive for it.

    Its C++ part cannot load beside a torch of another build, and its Python part then fails on
    operators that nobody declared. Nothing here uses these operators, so declaring them is enough.
    """
    try:
        torch = importlib.import_module("torch")
        importlib.import_module("torchvision")
    except ImportError:
        return None
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    else:
        return None
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("torchvision")
    return library


_library = _import_torchvision()


def pytest_sessionfinish(session):
    """For benchmarks/parity.py: what this process measured, as a file of its own."""
    folder = os.environ.get("FGVC_PARITY_RECORD")
    compare = sys.modules.get("compare")
    if folder and compare:
        rows = [[*key, error] for key, error in compare.MEASURED.items()]
        Path(folder, f"{os.getpid()}.json").write_text(json.dumps(rows))
