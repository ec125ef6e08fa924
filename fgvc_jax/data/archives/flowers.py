"""Oxford Flowers-102 (Nilsback and Zisserman, ICVGIP 2008)."""

import numpy as np

from fgvc_jax.data.archives.table import Download, Expected, Row, Table, Tree, label, mat
from fgvc_jax.errors import UserError

MARKER = "setid.mat"
EXPECTED = Expected({"label": 102}, {"train": 1020, "val": 1020, "test": 6149})
_URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
DOWNLOADS = (
    Download(
        "102flowers.tgz",
        _URL + "102flowers.tgz",
        344862509,
        "sha256:2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
    ),
    Download(
        "imagelabels.mat",
        _URL + "imagelabels.mat",
        502,
        "sha256:4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
    ),
    Download(
        "setid.mat",
        _URL + "setid.mat",
        14989,
        "sha256:46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd",
    ),
)
# The archive has numbers only; these are the names on the authors' page, in the order of the numbers.
NAMES = """
pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger
lily, moon orchid, bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king
protea, spear thistle, yellow iris, globe-flower, purple coneflower, peruvian lily, balloon
flower, giant white arum lily, fire lily, pincushion flower, fritillary, red ginger, grape
hyacinth, corn poppy, prince of wales feathers, stemless gentian, artichoke, sweet william,
carnation, garden phlox, love in the mist, mexican aster, alpine sea holly, ruby-lipped cattleya,
cape flower, great masterwort, siam tulip, lenten rose, barbeton daisy, daffodil, sword lily,
poinsettia, bolero deep blue, wallflower, marigold, buttercup, oxeye daisy, common dandelion,
petunia, wild pansy, primula, sunflower, pelargonium, bishop of llandaff, gaura, geranium, orange
dahlia, pink-yellow dahlia?, cautleya spicata, japanese anemone, black-eyed susan, silverbush,
californian poppy, osteospermum, spring crocus, bearded iris, windflower, tree poppy, gazania,
azalea, water lily, rose, thorn apple, morning glory, passion flower, lotus, toad lily, anthurium,
frangipani, clematis, hibiscus, columbine, desert-rose, tree mallow, magnolia, cyclamen,
watercress, canna lily, hippeastrum, bee balm, ball moss, foxglove, bougainvillea, camellia,
mallow, mexican petunia, bromelia, blanket flower, trumpet creeper, blackberry lily
"""


def read(tree: Tree) -> Table:
    """jpg/, imagelabels.mat and setid.mat: train is trnid, val valid and test tstid."""
    classes = tuple(" ".join(NAMES.split()).split(", "))
    (numbers,) = mat(tree.find("imagelabels.mat"), "labels")
    sets = mat(tree.find("setid.mat"), "trnid", "valid", "tstid")
    ids = np.concatenate(sets)
    if sorted(ids) != list(range(1, len(numbers) + 1)):
        raise UserError(
            f"setid.mat: its three sets have {len(ids):,} entries, which are not the images 1 to "
            f"{len(numbers):,} of imagelabels.mat, each once."
        )
    names = [f"jpg/image_{id_:05d}.jpg" for id_ in ids]
    splits = np.repeat(("train", "val", "test"), [len(set_) for set_ in sets])
    rows = []
    for split, id_, name, path in zip(
        splits, ids, names, tree.images(names, "setid.mat"), strict=True
    ):
        index = label(numbers[id_ - 1], len(classes), f"imagelabels.mat, image {id_}")
        rows.append(Row(str(split), name, path, {"id": str(id_), "label": index}))
    return Table({"label": classes}, rows, {}, {"ids": [str(i + 1) for i in range(len(classes))]})
