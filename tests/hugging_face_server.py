"""A repository of Hugging Face on the loopback, as `huggingface_hub` asks for it."""

import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "e6d89c2" + "0" * 33


class Repository(BaseHTTPRequestHandler):
    """Serves the files of `server.folder`: of `halved` at first half, of `broken` nothing.

    What is asked of `storage`, if that is another server, is redirected there. One with `whole` set
    knows no ranges.
    """

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        server, path = self.server, self.path.partition("?")[0]
        if path.endswith("/commits/main"):
            commits = [{"id": c, "title": "t", "message": "", "authors": [{"user": "u"}],
                        "date": "2026-07-01T00:00:00.000Z"} for c in server.commits]  # fmt: skip
            return self.send(200, json.dumps(commits).encode(), {}, body)
        name = re.sub(f".*/resolve/({COMMIT}|main)/", "", path)
        if not name or not (server.folder / name).is_file():
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        content = (server.folder / name).read_bytes()
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{server.etag or hashlib.sha256(content).hexdigest()}"',
        }
        begin = self.headers.get("Range", "")
        if body:
            server.asked.append((name, begin))
            server.tokens.append(self.headers.get("Authorization"))
        if body and server.storage:
            place = {"Location": f"{server.storage.address}/resolve/{COMMIT}/{name}"}
            return self.send(302, b"", place, body)
        if begin and not server.whole:
            first = int(begin.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            sent = 0 if name == server.broken else None
            return self.send(206, content[first:], headers, body, sent)
        sent = {server.halved: len(content) // 2, server.broken: 0}.get(name)
        return self.send(200, content, headers, body, sent)

    def send(self, status, content, headers, body, sent=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content[:sent])
        self.close_connection = self.close_connection or sent is not None

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serve_repository(folder):
    """Yield the server of a release's folder, with its `address`, until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Repository)
    server.folder, server.commits, server.asked = folder, [COMMIT], []
    server.halved = server.broken = server.etag = ""
    server.storage, server.whole, server.tokens = None, False, []
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
