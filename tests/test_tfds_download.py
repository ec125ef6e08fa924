"""Downloads against a server on this machine: whole, interrupted, wrong, and where it cannot go on."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from fgvc_jax.data.tfds.download import fetch
from fgvc_jax.data.tfds.table import Download
from fgvc_jax.errors import UserError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT; the server's attributes say how it misbehaves."""

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if server.status:
            self.send_error(server.status)
            return
        start = 0
        if asked and server.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206)
        else:
            self.send_response(200)
        body = CONTENT[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        # A connection that breaks: less comes than was announced.
        self.wfile.write(body[: server.breaks.pop(0)] if server.breaks else body)
        self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.breaks, server.ranges, server.status = [], [], True, 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def file(server, digest: str = DIGEST, size: int = len(CONTENT)) -> Download:
    return Download("a.tgz", f"http://127.0.0.1:{server.server_port}/a.tgz", size, digest)


def test_a_whole_file_and_then_none(server, tmp_path):
    target = fetch(file(server), tmp_path / "new")
    assert target.read_bytes() == CONTENT and target.name == "a.tgz"
    assert [p.name for p in target.parent.iterdir()] == ["a.tgz"]
    assert fetch(file(server), tmp_path / "new") == target
    assert server.asked == [None]  # the second call asked for nothing


@pytest.mark.parametrize("size", [len(CONTENT), 0])  # known beforehand, or not
def test_a_broken_transfer_goes_on_where_it_stopped(server, tmp_path, size):
    server.breaks = [100_000, 50_000]
    target = fetch(file(server, size=size), tmp_path, wait=0)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_another_process_goes_on_too(server, tmp_path):
    (tmp_path / "a.tgz.partial").write_bytes(CONTENT[:70_000])
    assert fetch(file(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=70000-"]


@pytest.mark.parametrize("size", [len(CONTENT), 0])
def test_a_transfer_that_ended_before_the_name_was_given(server, tmp_path, size):
    (tmp_path / "a.tgz.partial").write_bytes(CONTENT)
    assert fetch(file(server, size=size), tmp_path).read_bytes() == CONTENT
    assert server.asked == ([] if size else [f"bytes={len(CONTENT)}-"])


def test_a_server_that_cannot_go_on_begins_anew(server, tmp_path):
    server.ranges, server.breaks = False, [100_000]
    assert fetch(file(server), tmp_path, wait=0).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]


def test_a_wrong_checksum_is_not_kept(server, tmp_path):
    with pytest.raises(UserError, match="does not have the published checksum md5:00"):
        fetch(file(server, "md5:00"), tmp_path)
    (tmp_path / "a.tgz.partial").write_bytes(b"x" * 1000)  # of something else
    with pytest.raises(UserError, match="does not have the published checksum"):
        fetch(file(server), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_the_server_refuses_is_not_asked_again(server, tmp_path):
    server.status = 404
    with pytest.raises(UserError, match=r"404(.|\n)*--archive"):
        fetch(file(server), tmp_path, wait=0)
    assert len(server.asked) == 1


def test_a_server_that_sends_nothing_is_given_up(server, tmp_path):
    server.status = 503
    with pytest.raises(UserError, match="503"):
        fetch(file(server), tmp_path, wait=0)
    assert len(server.asked) == 5
    server.status, server.asked[:] = 0, []
    server.breaks = [1000] * 8  # slowly, but it comes: more breaks than tries
    assert fetch(file(server), tmp_path, wait=0).read_bytes() == CONTENT


def test_no_server(tmp_path):
    with pytest.raises(UserError, match="cannot be downloaded"):
        fetch(Download("a", "http://127.0.0.1:9/a", 0, DIGEST), tmp_path, wait=0)
