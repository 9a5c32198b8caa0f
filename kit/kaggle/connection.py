"""The connection to Kaggle: credentials, bounded waits, one plain sentence for each failure."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import requests
from urllib3.exceptions import HTTPError, InvalidHeader
from urllib3.util.retry import Retry

from kit.files import replace_file
from kit.kaggle.session import KaggleError, check_fields, open_client, read_credentials
from kit.progress import log

if TYPE_CHECKING:  # importing it takes a second
    from kagglesdk import KaggleClient
    from kagglesdk.competitions.services.competition_api_service import CompetitionApiClient

T = TypeVar("T")

TIMEOUT = (10, 60)  # seconds to connect, and between two bytes; the client itself has no limit
RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)  # seconds; five attempts in all
_LONGEST_RETRY_AFTER = 600.0  # seconds; a server that asks for more is not waited for
_MOST_PAGES = 1000  # of one list
_PASSING_STATUSES = {429, 500, 502, 503, 504}
# What the client, `requests` and urllib3 raise for no answer, or for one of another form.
_UNREADABLE = (
    requests.RequestException, HTTPError, ValueError, LookupError, TypeError, AttributeError,
    RecursionError,
)  # fmt: skip
AGAIN = "run the same command again"
LATER = f"wait a few minutes, and {AGAIN}"

SENTENCES = {
    400: "Kaggle refused the request: join {subject} at {page}, and check that the day's "
    "submissions are not used up and that the file is what the competition asks for",
    401: "Kaggle refused the credentials: make a new token at https://www.kaggle.com/settings/api, "
    "and remove an old KAGGLE_API_TOKEN or ~/.kaggle/access_token, which outranks kaggle.json",
    403: "Kaggle denied access to {subject}: accept its rules at {page}/rules with this "
    "account, and check the spelling of its name",
    404: "Kaggle does not know the competition {subject}: check the spelling of its name",
    413: f"Kaggle found the file too large: write fewer decimals, and {AGAIN}",
    429: f"Kaggle is limiting requests: {LATER}",
}
_SERVER_SENTENCE = f"Kaggle's server failed: {LATER}"
_OTHER_SENTENCE = "Kaggle gave an unexpected answer: look at {page}, and try again later"


class Client:
    """Kaggle's services as one account uses them.

    `subject` is what its errors speak of, `page` where the user can look, and `sentences` say what
    an HTTP status means there and what to do.
    """

    sentences = SENTENCES

    def __init__(self, subject: str, page: str, sleep: Callable[[float], None] = time.sleep):
        self.subject, self.page, self.sleep = subject, page, sleep
        try:
            self._credentials = read_credentials(TIMEOUT)
        except _UNREADABLE as error:
            raise self._describe_failure(error) from None

    def send(self, choose: Callable[[KaggleClient], Callable], **fields: Any) -> Any:
        """Send one request, once, and return Kaggle's answer. Raises `KaggleError`.

        `choose` picks a method: `lambda kaggle: kaggle.datasets.dataset_api_client.get_dataset`;
        `fields` are those of the request that the method takes.
        """
        with open_client(TIMEOUT, **self._credentials) as kaggle:
            method = choose(kaggle)
            request = get_type_hints(method)["request"]()
            for name, value in fields.items():
                setattr(request, name, value)
            try:
                answer = method(request)
                check_fields(answer)
            except _UNREADABLE as error:
                raise self._describe_failure(error) from None
            return answer

    def call(self, choose: Callable[[KaggleClient], Callable], **fields: Any) -> Any:
        """Send one request as `send` does, and repeat it as `retry` does."""
        return self.retry(partial(self.send, choose, **fields))

    def iterate_pages(self, choose: Callable[[KaggleClient], Callable], **fields: Any) -> Iterator:
        """The answers of a list, page after page. Raises `KaggleError` where it has no end."""
        for _ in range(_MOST_PAGES):
            answer = self.call(choose, page_size=100, **fields)
            yield answer
            if not answer.next_page_token:
                return
            fields["page_token"] = answer.next_page_token
        raise KaggleError(f"Kaggle's list about {self.subject} has no end: {LATER}.")

    def retry(self, attempt: Callable[[], T]) -> T:
        """Repeat `attempt` after `RETRY_DELAYS` while it raises a passing `KaggleError`."""
        answer = self.wait_until(lambda: (attempt(),))
        assert answer is not None  # where no attempt succeeds, the last error is raised
        return answer[0]

    def wait_until(
        self,
        check: Callable[[], T | None],
        delays: Iterable[float] = RETRY_DELAYS,
        seconds: float = math.inf,
        name: str = "Kaggle",
    ) -> T | None:
        """Call `check` until it returns something; None when `delays` or `seconds` end before.

        Each call is followed by the next of `delays`. A passing `KaggleError` is waited out too,
        for as long as Retry-After asks where that is longer; at the end the last one is raised.
        """
        deadline, pauses = time.monotonic() + seconds, iter(delays)
        while True:
            failure = None
            try:
                answer = check()
                if answer is not None:
                    return answer
            except KaggleError as error:
                if not error.passing or error.retry_after > _LONGEST_RETRY_AFTER:
                    raise
                failure = error
            pause, remaining = next(pauses, None), deadline - time.monotonic()
            if pause is None or remaining <= 0:
                if failure is not None:
                    raise failure
                return None
            pause = min(max(pause, failure.retry_after if failure else 0), remaining)
            if failure is not None:
                reason = f"HTTP {failure.status}" if failure.status else "no answer"
                log.warning(f"{name}: {reason}; trying again in {pause:g} s")
            self.sleep(pause)

    def _describe_failure(self, error: Exception) -> KaggleError:
        response = getattr(error, "response", None)
        if response is None:  # not `if not response`: an answer of 400 and above is falsy
            return describe_silence(error)
        try:
            body = response.json()
        except (ValueError, RecursionError):  # a web page
            body = None
        body = body if isinstance(body, dict) else {}
        code, detail = body.get("code"), str(body.get("message") or "")
        status = code if isinstance(code, int) and code >= 400 else response.status_code
        sentence = _SERVER_SENTENCE if status >= 500 else _OTHER_SENTENCE
        sentence = self.sentences.get(status, sentence).format(subject=self.subject, page=self.page)
        reason = f": {quote_reason(detail)}" if detail.strip() else ""
        return _describe_status(f"{sentence} (HTTP {status}{reason}).", status, response)


class CompetitionClient(Client):
    """Kaggle's service for competitions, as one account uses it for the competition `subject`."""

    def __init__(self, competition: str, sleep: Callable[[float], None] = time.sleep):
        super().__init__(competition, f"https://www.kaggle.com/competitions/{competition}", sleep)

    def send(self, choose: Callable[[CompetitionApiClient], Callable], **fields: Any) -> Any:
        """As `Client.send`, for `choose` such as `lambda service: service.get_submission`."""
        return super().send(
            lambda kaggle: choose(kaggle.competitions.competition_api_client), **fields
        )


def grow_delays(first: float, longest: float) -> Iterator[float]:
    """Delays without end, each half as long again as the one before, up to `longest`."""
    while True:
        yield first
        first = min(first * 1.5, longest)


def put_blob(url: str, content: Any) -> None:
    """Put bytes, or an open file, to the address that Kaggle gave for them, in one attempt."""
    try:
        answer = requests.put(url, data=content, timeout=TIMEOUT)
    except (requests.RequestException, HTTPError, ValueError) as error:
        # The address is a permission to write: neither it nor the error that quotes it is shown.
        raise describe_silence(error) from None
    check_storage(answer, "did not take the file")


def fetch_blob(url: str, target: Path) -> None:
    """Write what lies at an address that Kaggle gave to the file `target`, in one attempt."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(target) as part, open(part, "wb") as file:
        try:
            with requests.get(url, stream=True, timeout=TIMEOUT) as answer:
                check_storage(answer, f"did not give {target.name}")
                for chunk in answer.iter_content(1 << 20):
                    file.write(chunk)
        except (requests.RequestException, HTTPError, ValueError) as error:
            raise describe_silence(error) from None  # without the address, as in `put_blob`


def check_storage(answer: requests.Response, failure: str) -> None:
    """Raise `KaggleError` unless Kaggle's storage answered with success; `failure` is a verb."""
    status = answer.status_code
    if status not in (200, 201, 206):
        sentence = f"Kaggle's storage {failure} (HTTP {status}): {LATER}."
        raise _describe_status(sentence, status, answer)


def _describe_status(sentence: str, status: int, answer: requests.Response) -> KaggleError:
    try:
        wait = Retry().parse_retry_after(answer.headers.get("Retry-After", "0"))
    except (InvalidHeader, ValueError, OverflowError):
        wait = 0.0
    return KaggleError(sentence, status, status in _PASSING_STATUSES, wait)


def quote_reason(text: str) -> str:
    """The reason that Kaggle or a notebook gave, as it is quoted within a sentence of ours.

    It is put on one line without control characters, cut to 300, and loses its period.
    """
    plain = "".join(letter if letter.isprintable() else " " for letter in text[:10_000])
    return " ".join(plain.split())[:300].rstrip(".") or "no reason given"


def describe_silence(error: Exception) -> KaggleError:
    """The error for a request that got no answer, or one that cannot be read."""
    text = "Kaggle's answer could not be read: a proxy or a sign-in page may stand in between"
    if isinstance(error, requests.RequestException) and not isinstance(error, ValueError):
        kind = "it took too long" if isinstance(error, requests.Timeout) else type(error).__name__
        text = f"No answer from Kaggle ({kind})"
    return KaggleError(f"{text}: check the network and the proxy, and {AGAIN}.", passing=True)
