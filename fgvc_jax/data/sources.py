"""Where images come from: the digits of scikit-learn, and anybody's folder of class folders."""

import difflib
import functools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fgvc_jax.data.manifest import Manifest, Split
from fgvc_jax.data.split import stratified
from fgvc_jax.errors import UserError

EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"])
# The usual spellings of the split folders; case does not matter.
SPELLINGS = {
    "train": ("train", "training", "train_images"),
    "val": ("val", "valid", "validation", "val_images"),
    "test": ("test", "testing", "test_images"),
}
LAYOUT = """\
  ROOT/train/<class>/*.jpg      and, if you have them, ROOT/val/<class>/ and ROOT/test/<class>/
or class folders alone, which are then split:
  ROOT/<class>/*.jpg"""


def digits(*, val_fraction: float = 0.1, test_fraction: float = 0.1, seed: int = 0) -> Manifest:
    """The 1,797 real 8 x 8 handwritten digits that come with scikit-learn (Alpaydin & Kaynak 1998).

    Grey values 0..16 become 0..255 in three equal channels. Files are named 'digits/0000' to
    'digits/1796'; the split is stratified and seeded.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)
    files = [f"digits/{i:04d}" for i in range(len(grey))]
    splits = _carve(files, data.target, val_fraction, test_fraction, seed)
    return Manifest(
        "digits", tuple("0123456789"), splits, functools.partial(_read_digit, grey), root=None
    )


def _read_digit(grey: np.ndarray, file: str) -> np.ndarray:
    return np.repeat(grey[int(file.removeprefix("digits/")), :, :, None], 3, axis=2)


def folder(
    root: str | os.PathLike,
    *,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Manifest:
    """Class folders of images, already split or not.

    `root/train/<class>/` with optional `val/` and `test/` (also valid, validation, training,
    train_images and the like), or class folders alone, which are split into train, val and test.
    The sorted class names of the training folder are the class table of every split; a split may
    lack classes. Without a val folder, validation is carved from train. Without a test folder
    beside train there is no test split. Class folders are searched to any depth; hidden files and
    folders are ignored, files that are no images are ignored and counted.

    Args:
      root: the directory. File names in the manifest are relative to it.
      val_fraction, test_fraction: shares of all images (of the training images where only
        validation is carved), by class; 0 carves nothing.
      seed: of the carving.
      say: gets each line about what was found.

    Raises:
      UserError: root missing or without class folders; a class folder without images; a single
        class; a val or test class that train lacks; a split that comes out empty.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        what = "is a file, not a directory" if root.exists() else "does not exist"
        raise UserError(f"Image folder {root} {what}. Expected there:\n{LAYOUT}")
    where = _split_folders(root)
    other: Counter[str] = Counter()  # files that are no images, by extension

    train = _class_folders(where["train"], other)
    name = root.resolve().name or "folder"
    shown = where["train"]
    if not train:
        loose = sum(_is_image(p) for p in _visible(shown))
        found = f"{loose} images lie directly in it, which gives them no class. " if loose else ""
        raise UserError(f"No class folders in {shown}. {found}Expected:\n{LAYOUT}")
    empty = [c for c, files in train.items() if not files]
    if empty:
        raise UserError(
            f"{len(empty)} class folder{'s' if len(empty) > 1 else ''} without images in {shown}: "
            f"{_few(empty)}. Read are {' '.join(sorted(EXTENSIONS))}. "
            "Put images there or remove the folder."
        )
    if len(train) < 2:
        raise UserError(
            f"Only one class in {shown}: {next(iter(train))}. "
            f"Classification needs at least two class folders. Expected:\n{LAYOUT}"
        )
    classes = tuple(train)  # sorted

    given = {"train": _as_split(root, train, classes)}
    for split in ("val", "test"):
        if split not in where:
            continue
        found = {c: f for c, f in _class_folders(where[split], other).items() if f}
        unknown = [c for c in found if c not in train]
        if unknown:
            near = difflib.get_close_matches(unknown[0], classes, n=1, cutoff=0.0)[0]
            more = f" ({len(unknown)} such classes: {_few(unknown)})" if len(unknown) > 1 else ""
            raise UserError(
                f"Class {unknown[0]!r} in {where[split]} is not in {shown}, whose folders are the "
                f"class table{more}. The nearest training class is {near!r}. "
                "Rename the folder, or add training images."
            )
        if not found:
            raise UserError(
                f"No class folders with images in {where[split]}. "
                f"Remove the folder, or fill it. Expected:\n{LAYOUT}"
            )
        given[split] = _as_split(root, found, classes)

    splits = _carve_missing(given, where, root, classes, val_fraction, test_fraction, seed, say)
    for split, (files, labels) in splits.items():
        lacks = len(classes) - len(np.unique(labels))
        say(
            f"{name} {split}: {len(files):,} images of {len(classes) - lacks} classes"
            + (f" ({lacks} of {len(classes)} have none)" if lacks else "")
        )
    loose = sum(_is_image(p) for at in {root, *where.values()} for p in _visible(at))
    if loose:
        say(f"{name}: {loose:,} images outside class folders ignored: they have no class")
    if other:
        kinds = ", ".join(f"{n} {ext or 'without extension'}" for ext, n in other.most_common(5))
        say(f"{name}: {other.total():,} files that are no images ignored ({kinds})")
    return Manifest(name, classes, splits, functools.partial(_read_in, str(root)), root=str(root))


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Decodes one image file to uint8 [H, W, 3], RGB, upright.

    The EXIF orientation is applied, transparency is laid over white, palettes, grey, CMYK and
    16-bit grey are converted; of an animation the first frame is taken.

    Raises:
      UserError: naming the file and the reason, where it is missing, empty, truncated, no image,
        too large to be true, or of a kind with no defined grey range (float, 32-bit).
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise ValueError("the file is empty")
        with Image.open(path) as image:
            image.load()
            image = _upright(image)
            return np.array(_as_rgb(image))
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path}: refused, it would decode to far more pixels than a photo has ({error}). "
            "Shrink or remove it."
        ) from error
    except Exception as error:  # Pillow's plugins raise anything on damaged data
        reason = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image of a known format"
        elif isinstance(error, FileNotFoundError):
            reason = "no such file"
        raise UserError(f"{path}: cannot be read as an image: {reason}") from error


_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    if image.format == "TIFF":  # Pillow has turned these already
        return image
    try:
        orientation = image.getexif().get(0x0112)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        orientation = None
    method = _TRANSPOSE.get(orientation)
    return image if method is None else image.transpose(method)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):  # 16-bit grey; Pillow's own conversion clips it
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are {'32-bit integers' if image.mode == 'I' else 'floats'}, whose black "
            "and white are not defined; save it with 8 or 16 bits"
        )
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _read_in(root: str, file: str) -> np.ndarray:
    return read_image(Path(root, file))


def _split_folders(root: Path) -> dict[str, Path]:
    """Split -> its folder; {'train': root} where there are class folders alone."""
    folders = [p for p in _visible(root) if p.is_dir()]
    where: dict[str, Path] = {}
    for split, names in SPELLINGS.items():
        found = [p for p in folders if p.name.lower() in names]
        if len(found) > 1:
            raise UserError(
                f"{root} has {' and '.join(p.name for p in found)}: which is the {split} split? "
                "Keep one."
            )
        if found:
            where[split] = found[0]
    if not where:
        return {"train": root}
    if "train" not in where:
        present = ", ".join(p.name for p in where.values())
        raise UserError(f"{root} has {present} but no train folder. Expected there:\n{LAYOUT}")
    return where


def _class_folders(parent: Path, other: Counter) -> dict[str, list[Path]]:
    """Sorted class name -> its sorted images, at any depth."""
    classes = {}
    for folder_ in sorted(p for p in _visible(parent) if p.is_dir()):
        images = []
        for at, folders, files in os.walk(folder_, followlinks=True):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            for path in (Path(at, f) for f in files if not f.startswith(".")):
                if _is_image(path):
                    images.append(path)
                else:
                    other[path.suffix.lower()] += 1
        classes[folder_.name] = sorted(images)
    return classes


def _as_split(root: Path, classes_of: dict[str, list[Path]], classes: tuple[str, ...]) -> Split:
    table = {c: i for i, c in enumerate(classes)}
    files = [str(f.relative_to(root)) for c in classes_of for f in classes_of[c]]
    labels = [table[c] for c in classes_of for _ in classes_of[c]]
    return Split(tuple(files), np.array(labels, np.int32))


def _carve_missing(given, where, root, classes, val_fraction, test_fraction, seed, say):
    """Adds the splits that the folder does not have, out of its training images."""
    train = given["train"]
    if where["train"] == root:  # class folders alone
        splits = _carve(train.files, train.labels, val_fraction, test_fraction, seed)
        carved = {"val": val_fraction, "test": test_fraction}
    elif "val" not in given:
        splits = _carve(train.files, train.labels, val_fraction, 0.0, seed)
        carved = {"val": val_fraction}
        splits |= {k: v for k, v in given.items() if k == "test"}
    else:
        return given
    for split, fraction in carved.items():
        if fraction == 0:
            continue
        if split not in splits:
            largest = int(np.bincount(train.labels).max())
            raise UserError(
                f"{root}: no class is large enough to give a {split} image at "
                f"{split}_fraction={fraction} (the largest has {largest} images). "
                f"Raise {split}_fraction, or bring a {split} folder."
            )
        say(f"{split} carved: {fraction:.0%} of every class, seed {seed}")
        small = sorted(set(range(len(classes))) - set(splits[split].labels.tolist()))
        if small:
            say(
                f"{len(small)} of {len(classes)} classes are too small to give a {split} image "
                f"and stay in train: {_few([classes[i] for i in small])}"
            )
    return splits


def _carve(files, labels, val_fraction, test_fraction, seed) -> dict[str, Split]:
    """Stratified train, val and test; a split with no image is left out."""
    files, labels = np.array(files, object), np.asarray(labels, np.int32)
    rest, test = stratified(labels, test_fraction, seed)
    # Of what test left, so that val_fraction stays a share of the whole.
    train, val = stratified(labels[rest], val_fraction / (1 - test_fraction), seed + 1)
    parts = {"train": rest[train], "val": rest[val], "test": test}
    return {
        split: Split(tuple(files[index].tolist()), labels[index])
        for split, index in parts.items()
        if len(index)
    }


def _visible(folder_: Path) -> list[Path]:
    return [p for p in folder_.iterdir() if not p.name.startswith(".")]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and path.is_file()


def _few(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
