"""A stand-in for Kaggle on 127.0.0.1, spoken to by the real client through `http_proxy`.

Requests to the API arrive as `POST http://localhost/api/v1/<service>/<Method>`, requests to the
storage as `PUT` or `GET http://storage.test/<name>`: another host, as in the real world.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

_COVERAGE = "COVERAGE_PROCESS_CONFIG"  # by which a measured process measures those it starts
USER, KEY = "reader", "0123456789abcdefSECRETKEY"
BASIC = base64.b64encode(f"{USER}:{KEY}".encode()).decode()
STORAGE = "http://storage.test"
FOREVER = 10**9
SCORED = {"status": "COMPLETE", "publicScore": "0.71000", "privateScore": "0.04400"}


@dataclass
class Fault:
    """What goes wrong with a request: a status, a lost reply, a cut body or a long silence."""

    status: int = 200
    message: str = ""
    headers: dict = field(default_factory=dict)
    page: str | None = None  # an HTML page instead of JSON
    raw: bytes | None = None  # the body, whatever it is
    lose_reply: bool = False  # the request is carried out, the connection closed without an answer
    cut_after: int | None = None  # close the connection after so many bytes of the body
    stall: float = 0.0  # seconds of silence before anything else


@dataclass
class Request:
    """A request as it arrived; `name` is the API's method, or `PUT` or `GET` for the storage."""

    name: str
    path: str
    headers: dict
    body: bytes

    @property
    def fields(self) -> dict:
        return json.loads(self.body)


class KaggleServer:
    """Answers as Kaggle does, after the faults that `fail` has put in its way.

    `competition` and `limits` are the answers of the preflight, `outcomes` what GetSubmission
    gives, one a call (the last for ever), `submissions` what was created, `files` what can be
    downloaded (bytes by name), `requests` all that arrived.
    """

    def __init__(self):
        self.competition = {"userHasEntered": True, "maxDailySubmissions": 5}
        self.limits = {"numToday": 1, "numTotal": 3, "numAllowedNow": 4}
        self.outcomes = deque([SCORED])
        self.submissions: list[dict] = []
        self.page_size = 100
        self.files: dict[str, bytes] = {}
        self.file_headers: dict[str, str] = {}
        self.requests: list[Request] = []
        self.uploads: dict[str, bytes] = {}
        self.replaced: dict[str, dict] = {}  # fields of the methods' answers
        self._faults: dict[str, deque] = {}
        self._server = _Listener(("127.0.0.1", 0), _make_handler(self))
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, args=(0.02,), daemon=True)

    def __enter__(self) -> KaggleServer:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, name: str, times: int = 1, **fault) -> None:
        """Let the next `times` requests of this name meet `Fault(**fault)`."""
        self._faults.setdefault(name, deque()).append([times, Fault(**fault)])

    def clear_faults(self) -> None:
        self._faults.clear()

    def count(self, name: str) -> int:
        return sum(request.name == name for request in self.requests)

    def find(self, name: str) -> list[Request]:
        return [request for request in self.requests if request.name == name]

    def environment(self, home: Path, **more: str | None) -> dict[str, str]:
        """The environment in which the real client speaks to this server, as a known user.

        `more` adds variables, or with None takes them away.
        """
        kept = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "SYSTEMROOT", "LANG", _COVERAGE)
        variables = {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "http_proxy": f"http://127.0.0.1:{self._server.server_port}",
            "KAGGLE_USERNAME": USER,
            "KAGGLE_KEY": KEY,
            "HOME": str(home),
            "KAGGLE_CONFIG_DIR": str(home),
            "OMP_NUM_THREADS": "1",
            **more,
        }
        return {name: value for name, value in variables.items() if value is not None}

    def next_fault(self, name: str) -> Fault:
        queue = self._faults.get(name)
        if not queue:
            return Fault()
        queue[0][0] -= 1
        return queue[0][1] if queue[0][0] else queue.popleft()[1]

    def answer(self, method: str, fields: dict) -> dict:
        """The API's answer; a method this server does not know is an error of the test's."""
        return {
            "GenerateAccessToken": lambda: {"token": "RENEWED-TOKEN", "expiresIn": 3600},
            "GetCompetition": lambda: self.competition,
            "GetSubmissionLimits": lambda: self.limits,
            "StartSubmissionUpload": self._start_upload,
            "CreateSubmission": lambda: self._create_submission(fields),
            "GetSubmission": lambda: self._get_submission(fields["ref"]),
            "ListSubmissions": lambda: self._list_submissions(fields),
        }[method]()

    def _start_upload(self) -> dict:
        token = f"blob-{self.count('StartSubmissionUpload')}"
        return {"token": token, "createUrl": f"{STORAGE}/{token}?signature=SIGNED"}

    def _create_submission(self, fields: dict) -> dict:
        ref = 7001 + len(self.submissions)
        self.submissions.append(
            {
                "ref": ref,
                "description": fields["submissionDescription"],
                "fileName": "submission.csv.gz",
                "date": "2026-11-23T14:00:00.1234567Z",
                "blob": fields["blobFileTokens"],
            }
        )
        return {"message": "Successfully submitted", "ref": ref}

    def _get_submission(self, ref: int) -> dict:
        outcome = self.outcomes[0] if len(self.outcomes) == 1 else self.outcomes.popleft()
        return {"ref": ref} | outcome

    def _list_submissions(self, fields: dict) -> dict:
        start = read_start(fields)
        newest_first = self.submissions[::-1]
        page = newest_first[start : start + self.page_size]
        more = start + self.page_size < len(newest_first)
        token = {"nextPageToken": str(start + self.page_size)} if more else {}
        return {"submissions": page} | token


def read_start(fields: dict) -> int:
    """Where the page begins that a request asks for; an odd token asks for the first."""
    token = fields.get("pageToken", "")
    return int(token) if token.isdecimal() else 0


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # a client may hang up at any time
            super().handle_error(request, client_address)


def _make_handler(kaggle: KaggleServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            method = urlsplit(self.path).path.rpartition("/")[2]
            request, fault = self._receive(method)
            if fault.raw is not None:
                return self._send(fault.status, fault.raw, fault.headers, fault)
            if fault.status >= 400 or fault.page is not None:
                return self._refuse(fault)
            fields = request.fields
            if method in ("DownloadDataFile", "DownloadDataFiles"):
                name = fields.get("fileName", fields["competitionName"] + ".zip")
                name = name if name in kaggle.files else f"{name}.zip"
                if name not in kaggle.files:
                    return self._refuse(Fault(404, "Not found"))
                location = f"{STORAGE}/{name}?signature=SIGNED"
                return self._send(302, b"", {"Location": location}, fault)
            answer = kaggle.answer(method, fields)
            if isinstance(answer, Fault):
                return self._refuse(answer)
            body = json.dumps(answer | kaggle.replaced.get(method, {})).encode()
            return self._send(200, body, {"Content-Type": "application/json"}, fault)

        def do_PUT(self):
            request, fault = self._receive("PUT")
            if fault.status >= 400:
                return self._refuse(fault)
            kaggle.uploads[urlsplit(self.path).path.strip("/")] = request.body
            return self._send(200, b"", {}, fault)

        def do_GET(self):
            _, fault = self._receive("GET")
            if fault.status >= 400:
                return self._refuse(fault)
            content = kaggle.files[urlsplit(self.path).path.strip("/")]
            etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            headers = {"ETag": etag, "Accept-Ranges": "bytes"} | kaggle.file_headers
            asked = self.headers.get("Range")
            if asked is None:
                return self._send(200, content, headers, fault)
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self._send(206, content[start:], {"Content-Range": span} | headers, fault)

        def _receive(self, name: str) -> tuple[Request, Fault]:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Request(name, self.path, dict(self.headers), body)
            kaggle.requests.append(request)
            fault = kaggle.next_fault(name)
            time.sleep(fault.stall)
            return request, fault

        def _refuse(self, fault: Fault) -> None:
            if fault.page is not None:
                return self._send(
                    fault.status, fault.page.encode(), {"Content-Type": "text/html"}, fault
                )
            body = json.dumps({"code": fault.status, "message": fault.message}).encode()
            return self._send(
                fault.status, body, {"Content-Type": "application/json"} | fault.headers, fault
            )

        def _send(self, status: int, body: bytes, headers: dict, fault: Fault) -> None:
            if fault.lose_reply:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body if fault.cut_after is None else body[: fault.cut_after])
            if fault.cut_after is not None:
                self.close_connection = True

        def log_message(self, *_) -> None:
            pass

    return Handler
