"""Stanford Dogs, 120 breeds out of ImageNet (Khosla et al., FGVC workshop at CVPR 2011)."""

import re

from fgvc_jax.data.archives.table import Download, Expected, Row, Table, Tree, label, mat
from fgvc_jax.errors import UserError

MARKER = "train_list.mat"
EXPECTED = Expected({"label": 120}, {"train": 12000, "test": 8580})
_URL = "http://vision.stanford.edu/aditya86/ImageNetDogs/"
DOWNLOADS = (
    Download(
        "images.tar",
        _URL + "images.tar",
        793579520,
        "sha256:a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
    ),
    Download(
        "lists.tar",
        _URL + "lists.tar",
        481280,
        "sha256:34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
    ),
    Download(
        "annotation.tar",
        _URL + "annotation.tar",
        21852160,
        "sha256:662ed36f707be6b195c2fda392d8e153e83af28cedc8e2134a649f198def30fd",
    ),
)
# The annotations are XML without anything that would need a parser, which strangers could attack.
BOX = re.compile(
    r"<xmin>\s*(\d+)\s*</xmin>\s*<ymin>\s*(\d+)\s*</ymin>\s*"
    r"<xmax>\s*(\d+)\s*</xmax>\s*<ymax>\s*(\d+)\s*</ymax>"
)


def read(tree: Tree) -> Table:
    """Images/, train_list.mat, test_list.mat; a box or more an image where Annotation/ is there too.

    Class 'n02085620-Chihuahua' is called 'Chihuahua' and has the id 'n02085620'.
    """
    entries = []
    for split in ("train", "test"):
        list_ = f"{split}_list.mat"
        files, labels = mat(tree.find(list_), "file_list", "labels")
        if len(files) != len(labels):
            raise UserError(f"{list_} has {len(files)} files but {len(labels)} labels.")
        entries += [(split, list_, str(f), n) for f, n in zip(files, labels, strict=True)]
    folders = sorted({file.partition("/")[0] for _, _, file, _ in entries})
    paths = tree.images([file for _, _, file, _ in entries], "train_list.mat and test_list.mat")
    boxed = tree.has(entries[0][2].removesuffix(".jpg"))
    rows = []
    for (split, list_, file, number), path in zip(entries, paths, strict=True):
        folder = file.partition("/")[0]
        index = label(number, len(folders), f"{list_}, {file}")
        if folders[index] != folder:
            raise UserError(
                f"{list_}, {file}: label {number} is {folders[index]} by the order of the folders, "
                f"not {folder}. The lists and the images are not of one copy."
            )
        values = {"id": file.rpartition("/")[2].removesuffix(".jpg"), "label": index}
        if boxed:
            text = tree.find(file.removesuffix(".jpg")).read_text(errors="replace")
            values["bboxes"] = [tuple(map(float, box)) for box in BOX.findall(text)]
        rows.append(Row(split, file, path, values))
    parted = [folder.partition("-") for folder in folders]
    return Table(
        {"label": tuple(name.replace("_", " ") for _, _, name in parted)},
        rows,
        {"bboxes": (None, 4)} if boxed else {},
        {"ids": [id_ for id_, _, _ in parted]},
    )
