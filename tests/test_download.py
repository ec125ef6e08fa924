"""Downloads against a server on this machine: whole, interrupted, wrong, and where it cannot go on."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from fgvc_jax import download
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


@pytest.fixture
def fetch(server, tmp_path):
    """fetch(digest) -> path of the file in a folder of its own."""

    def run(digest: str = DIGEST, port: int = server.server_port):
        url = f"http://127.0.0.1:{port}/a.tgz"
        return download.fetch(url, tmp_path / "new/a.tgz", digest, bring="Bring it.", wait=0)

    (tmp_path / "new").mkdir()
    return run


def visible(folder):
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


def test_a_whole_file_and_then_none(server, fetch):
    target = fetch()
    assert target.read_bytes() == CONTENT and target.name == "a.tgz"
    assert visible(target.parent) == ["a.tgz"]
    assert fetch() == target
    assert server.asked == [None]  # the second call asked for nothing


def test_several_at_once(server, fetch):
    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetch().read_bytes() == CONTENT and server.asked == [None]


def test_a_broken_transfer_goes_on_where_it_stopped(server, fetch):
    server.breaks = [100_000, 50_000]
    assert fetch().read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_another_process_goes_on_too(server, fetch, tmp_path):
    (tmp_path / "new/a.tgz.partial").write_bytes(CONTENT[:70_000])
    assert fetch().read_bytes() == CONTENT
    assert server.asked == ["bytes=70000-"]


def test_a_transfer_that_ended_before_the_name_was_given(server, fetch, tmp_path):
    (tmp_path / "new/a.tgz.partial").write_bytes(CONTENT)
    assert fetch().read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]


def test_a_server_that_cannot_go_on_begins_anew(server, fetch):
    server.ranges, server.breaks = False, [100_000]
    assert fetch().read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]


def test_a_wrong_checksum_is_not_kept(fetch, tmp_path):
    with pytest.raises(UserError, match=r"does not have the published checksum md5:00.*Bring it"):
        fetch("md5:00")
    (tmp_path / "new/a.tgz.partial").write_bytes(b"x" * 1000)  # of something else
    with pytest.raises(UserError, match="does not have the published checksum"):
        fetch()
    assert not visible(tmp_path / "new")
    assert fetch(DIGEST[:15]).read_bytes() == CONTENT  # as file names have it: its beginning


def test_what_the_server_refuses_is_not_asked_again(server, fetch):
    server.status = 404
    with pytest.raises(UserError, match=r"404(.|\n)*Bring it"):
        fetch()
    assert len(server.asked) == 1


def test_a_server_that_sends_nothing_is_given_up(server, fetch):
    server.status = 503
    with pytest.raises(UserError, match="503"):
        fetch()
    assert len(server.asked) == 5
    server.status, server.asked[:] = 0, []
    server.breaks = [1000] * 8  # slowly, but it comes: more breaks than tries
    assert fetch().read_bytes() == CONTENT


def test_no_server_and_no_folder(fetch, tmp_path):
    with pytest.raises(UserError, match=r"cannot be downloaded: .*refused.*Bring it"):
        fetch(port=9)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be downloaded to .*Bring it"):
        download.fetch("http://127.0.0.1:9/a", tmp_path / "file/a", "", bring="Bring it.")
