"""NABirds, 555 North American birds by plumage (Van Horn et al., CVPR 2015)."""

from collections import Counter

from fgvc_jax.data.archives.cub import bird_rows
from fgvc_jax.data.archives.table import Download, Expected, Table, Tree, lines

MARKER = "hierarchy.txt"
EXPECTED = Expected({"label": 555}, {"train": 23929, "test": 24633})
# Handed out after a form: https://dl.allaboutbirds.org/nabirds.
DOWNLOADS = (Download("nabirds.tar.gz", "", 0, ""),)
GET = "It is handed out after a form has been filled in at https://dl.allaboutbirds.org/nabirds."


def read(tree: Tree) -> Table:
    """nabirds/ as published: boxes, 11 parts, the taxonomy.

    classes.txt names all 1,011 nodes of the taxonomy; the classes are the 555 that have images, by
    ascending id. metadata['hierarchy'] is {node: parent}, metadata['nodes'] {node: name}.
    """
    nodes = lines(tree.find("classes.txt"))
    used = set(lines(tree.find("image_class_labels.txt")).values())
    ids = sorted((id_ for id_ in nodes if id_ in used), key=lambda id_: (len(id_), id_))
    rows, part_names = bird_rows(tree, {id_: i for i, id_ in enumerate(ids)})
    repeated = {name for name, n in Counter(nodes[id_] for id_ in ids).items() if n > 1}
    classes = (f"{nodes[i]} [{i}]" if nodes[i] in repeated else nodes[i] for i in ids)
    return Table(
        {"label": tuple(classes)},
        rows,
        {"bbox": (4,), "parts": (len(part_names), 3)},
        {
            "ids": ids,
            "parts": part_names,
            "hierarchy": lines(tree.find("hierarchy.txt")),
            "nodes": nodes,
        },
    )
