"""Archives that mean harm, are damaged or are too large: refused by name, with nothing left behind."""

import gzip
import stat
import tarfile
import zipfile
from pathlib import Path

import archives
import pytest

from fgvc_jax.data.archives import unpack as module
from fgvc_jax.data.archives.unpack import unpack
from fgvc_jax.data.tfds import prepare
from fgvc_jax.errors import UserError


def tar(path: Path, *members: tuple[str, dict], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as file:
        for name, fields in members:
            archives.add(file, name, fields.pop("content", b"x"), **fields)
    return path


HARMFUL = {
    "the parent": ("../escaped.txt", {}, "a path out of its folder"),
    "a parent within": ("a/../../escaped.txt", {}, "a path out of its folder"),
    "an absolute path": ("/tmp/escaped.txt", {}, "a path out of its folder"),
    "a symbolic link": ("a", {"type": tarfile.SYMTYPE, "linkname": "../.."}, "a link"),
    "a link to a file": ("a", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a link"),
    "a hard link": ("a", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}, "a link"),
    "a device": ("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, "a device"),
    "a pipe": ("pipe", {"type": tarfile.FIFOTYPE}, "a device"),
}


@pytest.mark.parametrize("what", HARMFUL)
def test_a_harmful_member_is_refused(what, tmp_path):
    name, fields, message = HARMFUL[what]
    content = b"" if "type" in fields else b"x"
    archive = tar(tmp_path / "a.tgz", ("fine.txt", {}), (name, {"content": content, **fields}))
    target = tmp_path / "deep" / "out"
    target.mkdir(parents=True)
    with pytest.raises(UserError, match=f"refused, its member '{name}' is {message}"):
        unpack(archive, target)
    assert [p.name for p in target.iterdir()] == ["fine.txt"]  # what came before, inside
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tgz", "deep", "fine.txt", "out"]


def test_a_link_and_then_a_file_through_it(tmp_path):
    """The member after the link would be written outside."""
    link = {"type": tarfile.SYMTYPE, "linkname": str(tmp_path / "outside"), "content": b""}
    archive = tar(tmp_path / "a.tar", ("images", link), ("images/x.jpg", {}), mode="w")
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="'images' is a link"):
        unpack(archive, tmp_path / "out")
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("name", ["../escaped.txt", "/escaped.txt", "link"])
def test_a_harmful_zip(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        info = zipfile.ZipInfo(name)
        if name == "link":
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "../..")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=f"its member '{name}' is a (link|path out of its folder)"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def bombs(folder: Path):
    """Each unpacks to 10 MB, from a few KB."""
    zeros = bytes(10**7)
    yield tar(folder / "bomb.tgz", ("zeros", {"content": zeros}))
    yield tar(folder / "many.tgz", *((f"{i}", {"content": zeros[: 10**5]}) for i in range(100)))
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", zeros)
    yield folder / "bomb.zip"


def test_a_bomb_stops_at_the_bound(tmp_path):
    for archive in bombs(tmp_path):
        assert archive.stat().st_size < 10**5
        target = tmp_path / f"{archive.name} out"
        target.mkdir()
        with pytest.raises(UserError, match=r"refused, it holds more than 0\.002 GB"):
            unpack(archive, target, max_bytes=2 * 10**6)
        assert sum(p.stat().st_size for p in target.rglob("*") if p.is_file()) <= 2 * 10**6
        unpack(archive, target, max_bytes=10**7)  # exactly as large
        assert sum(p.stat().st_size for p in target.iterdir()) == 10**7


def test_too_many_members(tmp_path):
    archive = tar(tmp_path / "a.tgz", *((f"{i}", {}) for i in range(5)))
    (tmp_path / "out").mkdir()
    unpack(archive, tmp_path / "out", max_members=5)
    with pytest.raises(UserError, match="more than 4 members"):
        unpack(archive, tmp_path / "out", max_members=4)


def test_a_sparse_member_that_claims_to_be_huge(tmp_path):
    """An old GNU sparse header: 512 bytes that stand for 8 GB of zeros."""
    info = tarfile.TarInfo("sparse")
    info.type = tarfile.GNUTYPE_SPARSE
    info.size = 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % (8**11 - 1)  # the real size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"more than 0\.001 GB|cannot be unpacked"):
        unpack(tmp_path / "a.tar", tmp_path / "out", max_bytes=10**6)
    assert sum(p.stat().st_size for p in (tmp_path / "out").rglob("*")) <= 10**6


def damaged(folder: Path):
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, 50_000, np.uint8).tobytes()
    whole = tar(folder / "whole.tgz", ("noise", {"content": noise}), ("more", {"content": noise}))
    data = whole.read_bytes()
    (folder / "cut.tgz").write_bytes(data[: len(data) // 2])
    yield folder / "cut.tgz"
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    (folder / "flipped.tgz").write_bytes(flipped)
    yield folder / "flipped.tgz"
    inner = gzip.decompress(data)
    (folder / "cut.tar").write_bytes(inner[: len(inner) // 2])
    yield folder / "cut.tar"
    with zipfile.ZipFile(folder / "a.zip", "w") as file:
        file.writestr("noise", noise)
    data = bytearray((folder / "a.zip").read_bytes())
    data[100] ^= 0xFF
    (folder / "a.zip").write_bytes(data)
    yield folder / "a.zip"


def test_no_end_behind_the_last_member(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PADDING", 2**22)
    archive = tar(tmp_path / "a.tgz", ("fine.txt", {}))
    inner = gzip.decompress(archive.read_bytes())
    archive.write_bytes(gzip.compress(inner + bytes(2**23)))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="without end behind its last member"):
        unpack(archive, tmp_path / "out")


def test_a_damaged_archive_is_named(tmp_path):
    for number, archive in enumerate(damaged(tmp_path)):
        target = tmp_path / f"out{number}"
        target.mkdir()
        with pytest.raises(UserError, match=rf"{archive.name} cannot be unpacked: .*get it again"):
            unpack(archive, target)


def test_every_kind_of_archive_unpacks_to_its_files(tmp_path):
    content = {"a/b/c.txt": b"one", "d.txt": b"two", "a/empty": b""}
    paths = [
        tar(tmp_path / f"a.{kind}", *((n, {"content": v}) for n, v in content.items()), mode=mode)
        for kind, mode in (("tar", "w"), ("tgz", "w:gz"), ("tbz", "w:bz2"), ("txz", "w:xz"))
    ]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name, value in content.items():
            file.writestr(name, value)
    for number, path in enumerate([*paths, tmp_path / "a.zip"]):
        target = tmp_path / str(number)
        target.mkdir()
        unpack(path, target)
        found = {str(p.relative_to(target)): p for p in target.rglob("*") if p.is_file()}
        assert {name: p.read_bytes() for name, p in found.items()} == content


def test_permissions_are_not_taken_over(tmp_path):
    archive = tar(tmp_path / "a.tar", ("setuid", {"mode": 0o6777}), mode="w")
    (tmp_path / "out").mkdir()
    unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out" / "setuid").stat().st_mode & 0o6111


def test_prepare_leaves_nothing_of_a_refused_archive(tmp_path):
    archive = tar(tmp_path / "CUB_200_2011.tgz", ("fine.txt", {}), ("../escaped.txt", {}))
    with pytest.raises(UserError, match="a path out of its folder"):
        prepare.prepare("cub", [archive], tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    assert not (tmp_path / "escaped.txt").exists()


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "CUB_200_2011.tgz").write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match=r"no classes\.txt"):
        prepare.prepare("cub", [tmp_path / "CUB_200_2011.tgz"], tmp_path / "out")
