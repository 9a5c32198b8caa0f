"""A session with Kaggle's client: the credentials it signs with, and bounds on what it answers."""

from __future__ import annotations

import base64
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from kit import KitError
from kit.files import read_json

if TYPE_CHECKING:  # importing it takes a second
    from kagglesdk import KaggleClient

Timeout = tuple[float, float]  # seconds to connect, and between two bytes

_ANSWER_SECONDS = 300.0  # how long the API may take for one answer
_LARGEST_ANSWER = 64 << 20  # bytes of it; a page of a notebook's output has the whole log
_NO_CREDENTIALS = (
    "No Kaggle credentials were found: make a token at https://www.kaggle.com/settings/api and "
    "save it as ~/.kaggle/access_token, or set KAGGLE_API_TOKEN."
)


class KaggleError(KitError, RuntimeError):
    """What went wrong with Kaggle and what to do about it, in one plain sentence.

    `status` is the HTTP status of the answer (None without an answer), `passing` says whether the
    same request may succeed later, and `retry_after` how many seconds Kaggle asks to wait before.
    """

    def __init__(
        self,
        sentence: str,
        status: int | None = None,
        passing: bool = False,
        retry_after: float = 0.0,
    ):
        super().__init__(sentence)
        self.status, self.passing, self.retry_after = status, passing, retry_after


def read_credentials(timeout: Timeout) -> dict[str, str]:
    """What `KaggleClient` signs requests with, from where Kaggle's own client takes it.

    An access token outranks a key, even when it has run out; `KAGGLE_API_TOKEN` may also name a
    file. Raises `KaggleError` where there is nothing, or something that no header can carry.
    """
    from kagglesdk import get_access_token_from_env

    named = os.environ.get("KAGGLE_API_TOKEN", "").strip()
    try:
        token = Path(named).read_text() if os.path.isfile(named) else named
        token = (token or get_access_token_from_env()[0] or "").strip()
        key = {} if token else _read_key()
    except (OSError, ValueError) as error:
        name = getattr(error, "filename", None) or "Kaggle's credentials"
        raise KaggleError(f"{name} cannot be read: make a new token, and save it again.") from None
    if not token and not all(key.values()):
        token = _renew_token(timeout)
    found = {"api_token": token} if token else key
    if not all(found.values()):
        raise KaggleError(_NO_CREDENTIALS)
    if not all(value.isascii() and value.isprintable() for value in found.values()):
        raise KaggleError(
            "Kaggle's credentials hold a line break or another character that cannot be sent: make "
            "a new token at https://www.kaggle.com/settings/api, and save it alone."
        )
    return found


def _read_key() -> dict[str, str]:
    """The user name and key of the environment or of `kaggle.json`; "" for what is not there."""
    home, settings = Path.home() / ".kaggle", os.environ.get("XDG_CONFIG_HOME", "~/.config")
    folders = [home, Path(settings).expanduser() / "kaggle"]
    if folder := os.environ.get("KAGGLE_CONFIG_DIR"):
        folders = [Path(folder)]
    files = [folder / "kaggle.json" for folder in folders if (folder / "kaggle.json").is_file()]
    document = read_json(files[0]) if files else {}
    found = document if isinstance(document, dict) else {}
    values = [
        os.environ.get(f"KAGGLE_{name.upper()}", found.get(name)) for name in ("username", "key")
    ]
    username, key = (str(value or "").strip() for value in values)
    return {"username": username, "password": key}


def _renew_token(timeout: Timeout) -> str:
    """The access token of a browser's sign-in, which the client saved and renews; else ""."""
    from kagglesdk.kaggle_creds import KaggleCredentials

    with open_client(timeout) as kaggle:
        found = KaggleCredentials.load(kaggle)
        return (found.get_access_token() if found else None) or ""


@contextlib.contextmanager
def open_client(timeout: Timeout, **credentials: str) -> Iterator[KaggleClient]:
    """Open Kaggle's client. By itself it waits for ever, and an answer may quote a credential."""
    from kagglesdk import KaggleClient

    values = list(credentials.values())
    signature = base64.b64encode(":".join(values).encode()).decode()
    secrets = [value.encode() for value in (signature, *values[-1:]) if len(value) >= 8]
    with KaggleClient(**credentials) as kaggle:
        session = kaggle.http_client()._session
        session.send = partial(_send_bounded, session.send, timeout, secrets)
        yield kaggle


def _send_bounded(
    send: Callable,
    patience: Timeout,
    secrets: list[bytes],
    request: requests.PreparedRequest,
    **settings: Any,
) -> requests.Response:
    """Send a request and read its answer within bounds; a file is left to be streamed."""
    streamed = settings.pop("stream", False)
    answer = send(request, **settings | {"stream": True, "timeout": patience})
    if streamed and answer.ok and "json" not in answer.headers.get("Content-Type", ""):
        return answer
    content, deadline = bytearray(), time.monotonic() + _ANSWER_SECONDS
    while chunk := answer.raw.read1(1 << 16, decode_content=True):
        content += chunk
        if len(content) > _LARGEST_ANSWER or time.monotonic() > deadline:
            answer.close()
            raise requests.Timeout("the answer has no end")
    for secret in secrets:
        content = content.replace(secret, "…".encode())
    answer._content = bytes(content)  # what `requests` would have read itself
    return answer


def check_fields(answer: Any) -> None:
    """Raise `TypeError` where a field of Kaggle's answer has not the type that is declared."""
    from kagglesdk.kaggle_object import KaggleObject, ListSerializer, MapSerializer

    for field in getattr(answer, "_fields", ()):
        value = getattr(answer, field.private_field_name)
        if value is None and field.default_value is None:
            continue
        items = value if isinstance(field.serializer, ListSerializer) else [value]
        if isinstance(field.serializer, MapSerializer):
            items = value.values()
        for item in items:
            if isinstance(item, KaggleObject):
                check_fields(item)
            elif type(item) is not field.field_type and field.field_type is not float:
                raise TypeError(f"{field.json_name} is {type(item).__name__}")
