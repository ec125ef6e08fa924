"""fgvc prepare NAME --archive FILE ... [--out=DIR]

Makes a named data set ready: checks its archives against the official list and writes them for TFDS.
"""

import argparse
import os
from pathlib import Path

from fgvc_jax.data.tfds import SETS
from fgvc_jax.errors import UserError


def main() -> None:
    from fgvc_jax import files
    from fgvc_jax.data.tfds import prepare, read
    from fgvc_jax.download import fetch

    parser = argparse.ArgumentParser(
        "fgvc prepare",
        description=__doc__.partition("\n\n")[2],
        epilog="The sets and their files:\n\n" + "\n\n".join(map(_about, SETS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help=", ".join(SETS))
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--archive",
        nargs="+",
        metavar="PATH",
        help="the set's files in any order; or a folder that holds them or what was unpacked from them; or a "
        "copy with train/<class>/ and test/<class>/ folders, whose counts are checked",
    )
    source.add_argument(
        "--download",
        action="store_true",
        help="get the files from the official address; an interrupted download goes on where it stopped",
    )
    parser.add_argument(
        "--out",
        default=os.environ.get("FGVC_DATA"),
        help="where data sets lie (default: $FGVC_DATA); the set is written to OUT/NAME",
    )
    arguments = parser.parse_args()

    name, set_ = arguments.name, prepare.module(arguments.name)
    if not arguments.out:
        raise UserError("no place to write to: pass --out=DIR, or set FGVC_DATA.")
    out = Path(arguments.out).expanduser()
    if arguments.download:
        if not all(file.url for file in set_.DOWNLOADS):
            raise UserError(f"{name} cannot be downloaded. {_about(name)}")
        paths = [
            fetch(
                file.url,
                out / "downloads" / name / file.name,
                file.digest,
                bring=f"Or bring {file.name} yourself and pass it with --archive.",
            )
            for file in set_.DOWNLOADS
        ]
    else:
        paths = [Path(path).expanduser() for path in arguments.archive]
    directory = prepare.prepare(name, paths, out)
    found = read.prepared(directory, cache=files.cache_folder())
    counts = " / ".join(f"{len(files):,} {split}" for split, (files, _) in found.splits.items())
    print(f"{counts}: {prepare.standing(directory)}, in {out / name}")


def _about(name: str) -> str:
    """The files of a set, with what is known of each."""
    from fgvc_jax.data.tfds.prepare import module

    set_ = module(name)
    lines = [f"  {name}: {set_.__doc__.splitlines()[0]}"]
    for file in set_.DOWNLOADS:
        facts = [f"{file.bytes / 1e6:,.1f} MB"] if file.bytes else []
        facts += [file.url or "no address", file.digest or "no published checksum"]
        lines.append(f"    {file.name}: {', '.join(facts)}")
    if hasattr(set_, "GET"):
        lines.append(f"    {set_.GET}")
    return "\n".join(lines)
