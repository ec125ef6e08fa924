"""Archives from strangers, unpacked so that nothing lands outside the folder and nothing fills the disk."""

import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from fgvc_jax.errors import UserError

MAX_BYTES = 40 * 10**9  # the largest set, NABirds, has 10
MAX_MEMBERS = 500_000
BLOCK = 2**20
PADDING = 2**28  # at the end of a tar; tar programs write some KB


def is_archive(path: Path) -> bool:
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def unpack(
    archive: Path,
    target: Path,
    *,
    max_bytes: int = MAX_BYTES,
    max_members: int = MAX_MEMBERS,
) -> None:
    """Unpacks the plain files of a tar (of any compression) or a zip into a folder.

    Ownership, permissions and times are not taken over.

    Raises:
      UserError: an absolute path, '..', a link, a device; more members or (counted while writing,
        whatever the headers claim) more bytes than allowed; a damaged archive; a full disk.
    """
    left = max_bytes
    try:
        for number, (name, source) in enumerate(_members(archive)):
            if number >= max_members:
                raise UserError(f"{archive}: refused, it has more than {max_members:,} members.")
            path = target.joinpath(*_inside(archive, name))
            if source is None:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, open(path, "wb") as out:
                while block := source.read(BLOCK):
                    left -= len(block)
                    if left < 0:
                        raise UserError(
                            f"{archive}: refused, it holds more than {max_bytes / 1e9:g} GB, which no "
                            f"known data set does; {name} was being unpacked."
                        )
                    out.write(block)
    except UserError:
        raise
    except Exception as error:  # tarfile, zipfile and what they decompress with raise many things
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{archive} cannot be unpacked: {reason}. Unless the disk is full, the archive is damaged or "
            "incomplete: get it again."
        ) from error


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """(name, open file or None for a folder) of each member."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for info in file.infolist():
                if stat.S_ISLNK(info.external_attr >> 16):
                    raise _refused(archive, info.filename, "a link")
                yield info.filename, None if info.is_dir() else file.open(info)
        return
    with tarfile.open(archive) as file:
        for member in file:
            if member.isdir():
                yield member.name, None
            elif member.isreg():
                yield member.name, file.extractfile(member)
            else:
                link = member.issym() or member.islnk()
                raise _refused(archive, member.name, "a link" if link else "a device")
        # The padding, and behind it the checksum of the compression, which is else never looked at.
        for _ in range(PADDING // BLOCK):
            if not file.fileobj.read(BLOCK):
                return
        raise UserError(f"{archive}: refused, it goes on without end behind its last member.")


def _inside(archive: Path, name: str) -> tuple[str, ...]:
    """The parts of a member's path, which must stay below the folder it is unpacked in."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise _refused(archive, name, "a path out of its folder")
    return path.parts


def _refused(archive: Path, name: str, what: str) -> UserError:
    return UserError(
        f"{archive}: refused, its member {name!r} is {what}. If you trust the archive, unpack it yourself "
        "and name the folder instead."
    )
