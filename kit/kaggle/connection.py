"""The connection to Kaggle: credentials, bounded retries, one plain sentence for each failure."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import TypeVar

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import InvalidHeader
from urllib3.util.retry import Retry

from kit import KitError

T = TypeVar("T")

TIMEOUT = (10, 60)  # seconds to connect, and between two bytes; the client itself waits for ever
RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)  # seconds; five attempts in all
LONGEST_RETRY_AFTER = 600.0  # seconds; a server that asks for more is believed and not waited for
PASSING_STATUSES = {429, 500, 502, 503, 504}

SENTENCES = {
    400: "Kaggle refused the request: join {subject} at {page}, and check that the day's "
    "submissions are not used up and that the file is what the competition asks for",
    401: "Kaggle refused the credentials: make a new token at https://www.kaggle.com/settings/api, "
    "and remove an old KAGGLE_API_TOKEN or ~/.kaggle/access_token, which outranks kaggle.json",
    403: "Kaggle denied access to {subject}: accept its rules at {page}/rules with this "
    "account, and check the spelling of its name",
    404: "Kaggle does not know the competition {subject}: check the spelling of its name",
    413: "Kaggle found the file too large: write fewer decimals, and run the same command again",
    429: "Kaggle is limiting requests: wait a few minutes, and run the same command again",
}
SERVER_SENTENCE = "Kaggle's server failed: wait a few minutes, and run the same command again"
OTHER_SENTENCE = "Kaggle gave an answer that was not expected: look at {page}, and try again later"
NO_CREDENTIALS = (
    "No Kaggle credentials were found: make a token at https://www.kaggle.com/settings/api and "
    "save it as ~/.kaggle/access_token, or set KAGGLE_API_TOKEN"
)


class KaggleError(KitError, RuntimeError):
    """What went wrong with Kaggle and what to do about it, in one plain sentence.

    `status` is the HTTP status of the answer (None: no answer), `passing` whether the same request
    may succeed later, and `retry_after` the seconds that Kaggle asked to wait, where it did.
    """

    def __init__(
        self,
        sentence: str,
        status: int | None = None,
        passing: bool = False,
        retry_after: float | None = None,
    ):
        super().__init__(sentence)
        self.status, self.passing, self.retry_after = status, passing, retry_after


class Client:
    """Kaggle's services as one account uses them; `subject` is what its errors speak of.

    `sentences` say what an HTTP status means and what to do, `page` where to look.
    """

    sentences = SENTENCES

    def __init__(self, subject: str, page: str, sleep: Callable[[float], None] = time.sleep):
        self.subject, self.page, self.sleep = subject, page, sleep
        self._api = connect(subject)

    def send(self, service: str, method: str, **fields):
        """Send one request by its service and name on the wire, once; kagglesdk's answer.

        E.g. `send("datasets", "GetDataset", owner_slug="me", dataset_slug="mine")`. Raises
        `KaggleError`.
        """
        name = service if service == "kernels" else service.removesuffix("s")
        types = import_module(f"kagglesdk.{service}.types.{name}_api_service")
        request = getattr(types, f"Api{method}Request")()
        for field, value in fields.items():
            setattr(request, field, value)
        function = re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower()
        try:
            with self._api.build_kaggle_client() as kaggle:
                _limit_waiting(kaggle.http_client())
                client = getattr(getattr(kaggle, service), f"{name}_api_client")
                return getattr(client, function)(request)
        except (requests.RequestException, ValueError, KeyError) as error:
            raise explain(error, self.subject, self._secrets(), self.sentences, self.page) from None

    def _secrets(self) -> list[str]:
        from kagglesdk import get_access_token_from_env

        values = self._api.config_values
        # A token that has run out is not among the client's values, and is sent all the same.
        secrets = (values.get("key"), values.get("token"), get_access_token_from_env()[0])
        return [secret for secret in secrets if secret]


class CompetitionClient(Client):
    """Kaggle's competition service, as one account sees one competition."""

    def __init__(self, competition: str, sleep: Callable[[float], None] = time.sleep):
        page = f"https://www.kaggle.com/competitions/{competition}"
        super().__init__(competition, page, sleep)
        self.competition = competition

    def call(self, method: str, retries: bool = True, **fields):
        """Send one request of the service, e.g. `call("GetCompetition")`; kagglesdk's answer.

        `fields` are the request's; `competition_name` is filled in where it has one. With
        `retries` a passing failure is tried again, see `retry`. Raises `KaggleError`.
        """
        if method != "GetSubmission":  # a submission goes by its ref alone
            fields = {"competition_name": self.competition, **fields}

        def send():
            return self.send("competitions", method, **fields)

        return retry(send, self.sleep) if retries else send()


def connect(subject: str):
    """An authenticated `KaggleApi`, without what the client prints and would ever log.

    Raises `KaggleError` where there are no credentials or they cannot be checked.
    """
    # With either of these the client prints every request, Authorization header included.
    for name in ("VERBOSE", "VERBOSE_OUTPUT"):
        os.environ.pop(name, None)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from kaggle.api.kaggle_api_extended import KaggleApi

            api = KaggleApi()
            api.args = [argument for argument in api.args if argument != "--verbose"]
            api.authenticate()
    except SystemExit:
        raise KaggleError(NO_CREDENTIALS) from None
    except requests.RequestException as error:
        raise explain(error, subject) from None
    except OSError as error:
        raise KaggleError(
            f"Kaggle's client could not use its settings folder: {error.strerror}: "
            f"{error.filename}; set KAGGLE_CONFIG_DIR to a folder that can be written"
        ) from None
    # An empty KAGGLE_KEY passes for a key, and the request would go out unsigned.
    values = api.config_values
    if not (values.get("token") or (values.get("username") and values.get("key"))):
        raise KaggleError(NO_CREDENTIALS)
    return api


def retry(call: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """Repeat `call` while it raises a passing `KaggleError`, at most `len(RETRY_DELAYS)` times.

    Waits as long as `RETRY_DELAYS` say, or as Kaggle's Retry-After asks where that is longer.
    """
    for delay in RETRY_DELAYS:
        try:
            return call()
        except KaggleError as error:
            if not error.passing or (error.retry_after or 0) > LONGEST_RETRY_AFTER:
                raise
            wait = max(delay, error.retry_after or 0)
            reason = f"HTTP {error.status}" if error.status else "no answer"
        print(f"Kaggle: {reason}; trying again in {wait:g} s", file=sys.stderr, flush=True)
        sleep(wait)
    return call()


def put_blob(url: str, content) -> None:
    """Put bytes, or an open file, to the address that Kaggle gave for them, in one attempt."""
    try:
        answer = requests.put(url, data=content, timeout=TIMEOUT)
    except requests.RequestException as error:
        # The address is a permission to write: neither it nor the error that quotes it is shown.
        raise KaggleError(
            f"The upload to Kaggle broke off ({type(error).__name__}): check the network, and run "
            "the same command again.",
            passing=True,
        ) from None
    if answer.status_code not in (200, 201):
        raise KaggleError(
            f"Kaggle's storage did not take the file (HTTP {answer.status_code}): wait a few "
            "minutes, and run the same command again.",
            answer.status_code,
            passing=answer.status_code in PASSING_STATUSES,
            retry_after=read_retry_after(answer),
        )


def explain(
    error: Exception,
    subject: str,
    secrets: list[str] | tuple = (),
    sentences: dict[int, str] = SENTENCES,
    page: str = "https://www.kaggle.com",
) -> KaggleError:
    """The client's `error` as a `KaggleError`; `secrets` are cut out of what the server says."""
    response = getattr(error, "response", None)
    if response is None:  # not `if not response`: an answer of 400 and above is falsy
        return _explain_silence(error)
    body = _read_body(response)
    code = body.get("code")
    status = code if isinstance(code, int) and code >= 400 else response.status_code
    sentence = sentences.get(status, SERVER_SENTENCE if status >= 500 else OTHER_SENTENCE)
    detail = " ".join(str(body.get("message", "")).split())[:300].rstrip(".")
    for secret in secrets:
        detail = detail.replace(secret, "…")
    sentence = sentence.format(subject=subject, page=page)
    sentence += f" (HTTP {status}: {detail})." if detail else f" (HTTP {status})."
    return KaggleError(sentence, status, status in PASSING_STATUSES, read_retry_after(response))


def read_retry_after(response: requests.Response) -> float | None:
    """Seconds that Retry-After (a number or a date) asks to wait; None without a valid one."""
    try:
        return Retry().get_retry_after(response)
    except InvalidHeader:
        return None


def _explain_silence(error: Exception) -> KaggleError:
    if isinstance(error, requests.RequestException) and not isinstance(error, ValueError):
        kind = "it took too long" if isinstance(error, requests.Timeout) else type(error).__name__
        return KaggleError(
            f"No answer from Kaggle ({kind}): check the network and the proxy settings, and run "
            "the same command again.",
            passing=True,
        )
    return KaggleError(
        "Kaggle's answer could not be read: a proxy or a sign-in page may stand in between; check "
        "the network, and run the same command again.",
        passing=True,
    )


def _read_body(response: requests.Response) -> dict:
    try:
        body = response.json()
    except ValueError:  # a page for people, not an answer for programs
        return {}
    return body if isinstance(body, dict) else {}


class _LimitedAdapter(HTTPAdapter):
    def send(self, request, **options):
        options["timeout"] = options.get("timeout") or TIMEOUT
        return super().send(request, **options)


def _limit_waiting(http_client) -> None:
    # The client has no setting for it, and a server that stalls would hold the command for ever.
    session = getattr(http_client, "_session", None)
    if session is not None:
        session.mount("https://", _LimitedAdapter())
        session.mount("http://", _LimitedAdapter())
