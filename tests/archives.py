"""Small archives in the true layouts of the named data sets: the true folders and lists, a few tiny images.

Each function fills a folder as the archive would be unpacked and returns the labels that must come out,
{official file name: (split, label)}, counted independently of the package's readers.
"""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(path: Path, number: int, size: tuple[int, int] = (12, 10)) -> None:
    """An image whose pixels tell which one it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, "jpeg")


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def savemat(path: Path, **variables) -> None:
    import scipy.io

    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, variables)


def cells(values: list) -> np.ndarray:
    """A column of MATLAB cells."""
    column = np.empty((len(values), 1), object)
    column[:, 0] = values
    return column


def tar(path: Path, root: Path, mode: str = "w:gz") -> Path:
    """Everything in a folder, as a tar."""
    with tarfile.open(path, mode) as file:
        for entry in sorted(root.iterdir()):
            file.add(entry, entry.name)
    return path


def add(file: tarfile.TarFile, name: str, content: bytes = b"x", **fields) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    file.addfile(info, io.BytesIO(content))


def cub(root: Path) -> dict[str, tuple[str, int]]:
    """Four classes: two images each in train, one in test; 15 parts."""
    top, rows = root / "CUB_200_2011", []
    classes = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Crested_Auklet"]
    classes += ["004.Chuck_will_Widow"]
    for label, folder in enumerate(classes):
        for n in range(3):
            rows.append((f"{folder}/{folder[4:]}_{n:04d}_{10 + label}.jpg", label, int(n != 1)))
    write(root / "attributes.txt", ["1 has_bill_shape::curved"])
    write(top / "classes.txt", [f"{i + 1} {c}" for i, c in enumerate(classes)])
    write(top / "images.txt", [f"{i + 1} {r[0]}" for i, r in enumerate(rows)])
    write(top / "image_class_labels.txt", [f"{i + 1} {r[1] + 1}" for i, r in enumerate(rows)])
    write(top / "train_test_split.txt", [f"{i + 1} {r[2]}" for i, r in enumerate(rows)])
    write(
        top / "bounding_boxes.txt", [f"{i + 1} {i}.0 2.0 5.5 {i + 1}.0" for i in range(len(rows))]
    )
    write(top / "parts" / "parts.txt", [f"{p + 1} part {p}" for p in range(15)])
    write(
        top / "parts" / "part_locs.txt",
        [f"{i + 1} {p + 1} {i}.5 {p}.0 {p % 2}" for i in range(len(rows)) for p in range(15)],
    )
    for i, (file, _, _) in enumerate(rows):
        jpeg(top / "images" / file, i)
    return {file: ("train" if train else "test", label) for file, label, train in rows}


def nabirds(root: Path) -> dict[str, tuple[str, int]]:
    """Three classes with the ids 37, 295 and 1009, under nodes of a taxonomy that have no images."""
    top, rows = root / "nabirds", []
    nodes = {
        0: "Birds",
        37: "Barn Owl",
        22: "Owls",
        295: "Eider (Adult male)",
        1009: "Wren, Pacific",
    }
    for label, node in enumerate((37, 295, 1009)):
        for n in range(3):
            key = f"{label}{n}00139e-21dc-4d0c-bfe1-4cae3c85c829"
            rows.append((key, f"{node:04d}/{key.replace('-', '')}.jpg", label, node, int(n != 0)))
    write(top / "classes.txt", [f"{k} {v}" for k, v in nodes.items()])
    write(top / "hierarchy.txt", ["37 22", "22 0", "295 0", "1009 0"])
    write(top / "images.txt", [f"{r[0]} {r[1]}" for r in rows])
    write(top / "image_class_labels.txt", [f"{r[0]} {r[3]}" for r in rows])
    write(top / "train_test_split.txt", [f"{r[0]} {r[4]}" for r in rows])
    write(top / "bounding_boxes.txt", [f"{r[0]} 1 2 3 4" for r in rows])
    write(top / "sizes.txt", [f"{r[0]} 12 10" for r in rows])
    write(top / "parts" / "parts.txt", [f"{p} part {p}" for p in range(11)])
    write(
        top / "parts" / "part_locs.txt",
        [f"{r[0]} {p} {p} 1 1" for r in rows for p in range(11)],
    )
    for i, row in enumerate(rows):
        jpeg(top / "images" / row[1], i)
    return {file: ("train" if train else "test", label) for _, file, label, _, train in rows}


CAR_NAMES = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"]
CAR_NAMES += ["smart fortwo Convertible 2012"]


def _annos(rows: list[dict]) -> np.ndarray:
    """A 1 x N struct array, as the devkit's."""
    records = np.empty((1, len(rows)), [(key, object) for key in rows[0]])
    for i, row in enumerate(rows):
        records[0, i] = tuple(row.values())
    return records


def cars(root: Path) -> dict[str, tuple[str, int]]:
    """Four classes: two images each in train, one in test, numbered from 00001 in both."""
    expected = {}
    for split, per_class in (("train", 2), ("test", 1)):
        rows = []
        for i in range(4 * per_class):
            label, file = (3 * i + 1) % 4, f"{i + 1:05d}.jpg"
            box = dict(zip(("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"), (i, 2, 8, 9), strict=True))
            rows.append(box | {"class": label + 1, "fname": file})
            jpeg(root / f"cars_{split}" / file, i + (100 if split == "test" else 0))
            expected[f"cars_{split}/{file}"] = (split, label)
        where = root / "devkit" / "cars_train_annos.mat"
        if split == "test":
            where = root / "cars_test_annos_withlabels.mat"
            unlabelled = [{k: v for k, v in row.items() if k != "class"} for row in rows]
            savemat(root / "devkit" / "cars_test_annos.mat", annotations=_annos(unlabelled))
        savemat(where, annotations=_annos(rows))
    names = np.empty((1, 4), object)
    names[0] = CAR_NAMES
    savemat(root / "devkit" / "cars_meta.mat", class_names=names)
    return expected


def car_ims(root: Path) -> dict[str, tuple[str, int]]:
    """The same set under its other names: car_ims/ and one list with the split in it."""
    rows, expected = [], {}
    for i in range(12):
        label, test = i // 3, int(i % 3 == 1)
        file = f"car_ims/{i + 1:06d}.jpg"
        box = dict(zip(("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"), (i, 2, 8, 9), strict=True))
        rows.append({"relative_im_path": file} | box | {"class": label + 1, "test": test})
        jpeg(root / file, i)
        expected[file] = ("test" if test else "train", label)
    names = np.empty((1, 4), object)
    names[0] = CAR_NAMES
    savemat(root / "cars_annos.mat", annotations=_annos(rows), class_names=names)
    return expected


def dogs(root: Path) -> dict[str, tuple[str, int]]:
    """Three classes; the second image of each has two boxes."""
    folders = ["n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02116738-African_hunting_dog"]
    expected = {}
    for split, numbers in (("train", (7, 199)), ("test", (1073,))):
        files, labels = [], []
        for label, folder in enumerate(folders):
            for n in numbers:
                stem = f"{folder}/{folder[:9]}_{n}"
                files.append(f"{stem}.jpg")
                labels.append([label + 1])
                jpeg(root / "Images" / f"{stem}.jpg", n + label)
                box = (
                    "<object><bndbox>\n<xmin>{}</xmin>\n<ymin>2</ymin><xmax>9</xmax>"
                    "<ymax>8</ymax></bndbox></object>"
                )
                text = "".join(box.format(i) for i in range(2 if n == 199 else 1))
                write(root / "Annotation" / stem, [f"<annotation>{text}</annotation>"])
                expected[f"{stem}.jpg"] = (split, label)
        savemat(root / f"{split}_list.mat", file_list=cells(files), labels=labels)
    return expected


def flowers(root: Path) -> dict[str, tuple[str, int]]:
    """All 102 classes (their names are not in the archive): one image each in train, val and test."""
    order = np.random.default_rng(0).permutation(306) + 1
    labels = np.zeros(306, np.uint8)
    parts = {"trnid": order[:102], "valid": order[102:204], "tstid": order[204:]}
    expected = {}
    for split, ids in zip(("train", "val", "test"), parts.values(), strict=True):
        for label, id_ in enumerate(ids):
            labels[id_ - 1] = label + 1
            jpeg(root / "jpg" / f"image_{id_:05d}.jpg", int(id_), (4, 4))
            expected[f"jpg/image_{id_:05d}.jpg"] = (split, label)
    savemat(root / "imagelabels.mat", labels=labels[None])
    savemat(root / "setid.mat", **{key: ids[None].astype(np.uint16) for key, ids in parts.items()})
    return expected


def dtd(root: Path) -> dict[str, list[tuple[str, int]]]:
    """Two classes of six images: two in each part of each of the ten splits; a list, one entry a split."""
    top, files = root / "dtd", {}
    for label, name in enumerate(("banded", "honeycombed")):
        for n in range(6):
            jpeg(top / "images" / name / f"{name}_{n:04d}.jpg", 10 * label + n)
            files[f"{name}/{name}_{n:04d}.jpg"] = (label, n)
    expected = {file: [] for file in files}
    for fold in range(1, 11):
        lists = {"train": [], "val": [], "test": []}
        for file, (label, n) in files.items():
            split = ("train", "val", "test")[(n + fold) % 3]
            lists[split].append(file)
            expected[file].append((split, label))
        for split, names in lists.items():
            write(top / "labels" / f"{split}{fold}.txt", names)
    write(
        top / "labels" / "labels_joint_anno.txt", [f"{file} {file.split('/')[0]}" for file in files]
    )
    return expected


def aircraft(root: Path) -> dict[str, tuple[str, int]]:
    """Three variants of two families of two manufacturers; the lowest 20 rows are white."""
    top, expected = root / "fgvc-aircraft-2013b" / "data", {}
    kinds = [("Cessna 172", "Cessna 172", "Cessna"), ("F-16A/B", "F-16", "Lockheed Martin")]
    kinds.append(("F-16C", "F-16", "Lockheed Martin"))
    for place, plural in enumerate(("variants", "families", "manufacturers")):
        write(top / f"{plural}.txt", sorted({kind[place] for kind in kinds}))
    boxes, lists = [], {}
    for label, kind in enumerate(kinds):
        for n, split in enumerate(("train", "val", "test")):
            id_ = f"{label}{n}34309"
            jpeg(top / "images" / f"{id_}.jpg", 10 * label + n, (32, 40))
            boxes.append(f"{id_} 3 4 30 {20 + n}")
            for word, name in zip(("variant", "family", "manufacturer"), kind, strict=True):
                lists.setdefault(f"images_{word}_{split}.txt", []).append(f"{id_} {name}")
                if split != "test":
                    lists.setdefault(f"images_{word}_trainval.txt", []).append(f"{id_} {name}")
            expected[f"{id_}.jpg"] = (split, label)
    write(top / "images_box.txt", boxes)
    for name, lines in lists.items():
        write(top / name, lines)
    return expected
