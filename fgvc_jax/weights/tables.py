"""The names and layouts of one family's files, for `load_pretrained`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from fgvc_jax.weights.readers import Entry

Shape = tuple[int, ...]

# torch's names for the arrays of a layer.
LAST = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


class Layout(NamedTuple):
    """One naming of a family's arrays.

    Attributes:
      name: of the library that writes it.
      marker: a key that files of this layout have; the first layout of a table that fits is taken.
      key: path of ours, 'layer1/0/conv1/kernel', -> key in the file, 'layer1.0.conv1.weight'.
      preprocessing: fields in which this library's published weights want other images than the
        backbone says.
      when: a further condition on the entries of the file.
      translate: for files that are not one array for one of ours (split q, k, v; other axes): the
        entries of the file -> entries as torch would hold them, to which `key` then refers. What it
        does not know it passes on, so that the report lists it.
      wants: name of the backbone -> those of its arguments, with which it computes as this library
        does and which no array shows: epsilons, paddings.
      agrees: backbone -> whether it computes the same at its own image size whatever they are.
      refuses: (backbone, what the file is called) -> why another backbone has to be named for these
        weights, '' where none has.
      head: the classifier's module in the file, 'fc' of 'fc.weight'; '' = not exported in this layout.
      arguments: an argument of our backbone, 'depths', -> timm's of `create_model`, 'layers', for export.
    """

    name: str
    marker: str
    key: Callable[[str], str]
    preprocessing: dict[str, Any] = {}  # noqa: RUF012
    when: Callable[[dict[str, Entry]], bool] = lambda entries: True
    translate: Callable[[dict[str, Entry]], dict[str, Entry]] | None = None
    wants: Callable[[str], dict[str, Any]] = lambda name: {}
    agrees: Callable[[nnx.Module], bool] = lambda backbone: False
    refuses: Callable[[nnx.Module, str], str] = lambda backbone, name: ""
    head: str = ""
    arguments: dict[str, str] = {}  # noqa: RUF012


class Table(NamedTuple):
    """A family's files.

    Attributes:
      layouts: the namings that are known.
      resize: (backbone, path of ours, shape there, shape here) -> the function that fits the array,
        None where it fits as it is and where there is none.
      old_names: (pattern, replacement) of keys that earlier versions of a library wrote
        differently.
    """

    layouts: tuple[Layout, ...]
    resize: Callable[[nnx.Module, str, Shape, Shape], Callable[[jax.Array], jax.Array] | None] = (
        lambda backbone, path, there, here: None
    )
    old_names: tuple[tuple[str, str], ...] = ()
