"""The files of `fgvc predict`: rows that are kept as they are found, then written in one of the formats."""

import csv
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fgvc_jax import files
from fgvc_jax.errors import UserError
from fgvc_jax.predictions import Prediction

Row = dict[str, Any]

FORMATS = ("csv", "json", "parquet", "competition", "kaggle")
GROUP = 5_000  # rows of a Parquet row group


def columns(topk: int) -> dict[str, type]:
    """The columns of csv, json and parquet, and the type of each."""
    more = {}
    for place in range(3, topk + 1):
        more |= {f"class_{place}": str, f"probability_{place}": float}
    return {
        "file": str,
        "class": str,
        "id": str,
        "probability": float,
        "second": str,
        "second_probability": float,
        "margin": float,
        "decision": str,
        "nearest": str,
        "nearest_class": str,
        "distance": float,
        "unlike": bool,
        **more,
        "error": str,
    }


def row(found: Prediction, classes: Sequence[str], ids: Sequence[str], topk: int) -> Row:
    """A prediction under the names of `columns`; None where there is nothing to say."""
    result: Row = dict.fromkeys(columns(topk))
    result["file"] = os.fspath(found.image)
    if found.error is not None:
        result["error"] = found.error.removeprefix(f"{result['file']}: ")
        return result
    names = ["class", "second", *(f"class_{place}" for place in range(3, topk + 1))]
    shares = ["probability", "second_probability"]
    shares += [f"probability_{place}" for place in range(3, topk + 1)]
    for name, share, label, p in zip(
        names, shares, found.labels, found.probabilities, strict=False
    ):
        result[name], result[share] = classes[label], round(p, 6)
    result["id"] = ids[found.labels[0]] if ids else None
    result["margin"] = None if found.margin is None else round(found.margin, 6)
    if found.accepted is not None:
        result["decision"] = "accept" if found.accepted else "review"
    if found.nearest_label >= 0:
        result["nearest"], result["nearest_class"] = found.nearest, classes[found.nearest_label]
        result["distance"], result["unlike"] = round(found.distance, 6), found.unlike
    return result


class Partial:
    """OUT.partial: a line that says which command it belongs to, then a JSON line for each row.

    Attributes:
      done: rows that an earlier call with the same key has left; a line that was cut off is dropped.
      other: whether there was a file of another command, which is replaced.
    """

    def __init__(self, out: Path, key: Sequence[str]):
        self.path = out.with_name(f"{out.name}.partial")
        digest = hashlib.sha256("\0".join(key).encode("utf-8", "surrogateescape")).hexdigest()
        head = json.dumps({"fgvc predict": digest}) + "\n"
        self.done, end, self.other = 0, len(head), False
        if self.path.exists():
            with open(self.path, "rb") as file:
                if file.readline() == head.encode():
                    for line in file:
                        if not line.endswith(b"\n"):
                            break
                        self.done, end = self.done + 1, end + len(line)
                else:
                    self.other = True
        self._file = open(self.path, "r+b" if self.done else "wb")  # noqa: SIM115  closed by close
        if self.done:
            self._file.seek(end)
            self._file.truncate()
        else:
            self._file.write(head.encode())

    def write(self, rows: Iterable[Row]) -> None:
        """Adds rows and hands them to the system."""
        for one in rows:  # ASCII: a file name that is no UTF-8 comes back as it was
            self._file.write(json.dumps(one).encode() + b"\n")
        self._file.flush()

    def rows(self) -> Iterator[Row]:
        """All rows, from the first."""
        self._file.flush()
        with open(self.path, "rb") as file:
            file.readline()
            yield from map(json.loads, file)

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        self.close()
        self.path.unlink()


def write(out: Path, form: str, rows: Iterable[Row], topk: int, group_name: str = "") -> None:
    """Writes all rows in a format of FORMATS; a reader sees the old file or the new one, whole."""
    types = columns(topk)
    with files.atomic(out) as binary:
        if form == "parquet":
            _write_parquet(binary, rows, types)
            return
        text = io.TextIOWrapper(binary, "utf-8", errors="surrogateescape", newline="")
        if form == "csv":
            writer = csv.DictWriter(text, list(types))
            writer.writeheader()
            writer.writerows({key: _cell(value) for key, value in one.items()} for one in rows)
        elif form == "json":
            for number, one in enumerate(rows):
                text.write(",\n" if number else "[\n")
                text.write(json.dumps(one, ensure_ascii=False))
            text.write("\n]\n")
        elif form == "competition":
            answers = {os.path.basename(one["file"]): one["id"] or "" for one in rows}
            content = {"images": answers, "groupname": group_name}
            text.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        else:
            writer = csv.writer(text)
            writer.writerow(("Id", "Category"))
            for one in rows:
                writer.writerow((Path(one["file"]).stem, one["id"] or one["class"] or ""))
        text.flush()
        text.detach()


def check_parquet() -> None:
    """UserError where the library that writes Parquet is absent."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UserError(
            "--format=parquet needs pyarrow: pip install 'fgvc_jax[parquet]', or use --format=csv or json."
        ) from None


def _write_parquet(binary: Any, rows: Iterable[Row], types: dict[str, type]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    known = {str: pa.string(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, known[kind]) for name, kind in types.items()])
    rows = iter(rows)
    with parquet.ParquetWriter(binary, schema) as writer:
        while some := list(itertools.islice(rows, GROUP)):
            for one in some:  # Parquet has no place for bytes that are no UTF-8
                one["file"] = (
                    one["file"].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                )
            writer.write_table(pa.Table.from_pylist(some, schema))


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6f}" if isinstance(value, float) else value
