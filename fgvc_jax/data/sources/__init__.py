"""Readers, one file a kind of layout.

Each gives a Manifest with the splits that the data come with, or the one split 'all' where they come
with none; `fgvc_jax.data.split.carve` makes the others.
"""

from fgvc_jax.data.sources.coco import inaturalist
from fgvc_jax.data.sources.competitions import competition
from fgvc_jax.data.sources.folders import folder
from fgvc_jax.data.sources.images import EXTENSIONS, decode, read_image
from fgvc_jax.data.sources.lists import image_list
from fgvc_jax.data.sources.originals import original
from fgvc_jax.data.sources.scikit import digits

__all__ = [
    "EXTENSIONS",
    "competition",
    "decode",
    "digits",
    "folder",
    "image_list",
    "inaturalist",
    "original",
    "read_image",
]
