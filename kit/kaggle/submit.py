"""Send a submission to Kaggle exactly once, wait for its score, and keep the ledger true."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kit.competition import SLUG, LabelError
from kit.kaggle.connection import RETRY_DELAYS, CompetitionClient, KaggleError, put_blob, retry
from kit.kaggle.ledger import (
    LEDGER,
    append_entry,
    describe_scores,
    describe_submission,
    find_entry,
    iterate_submissions,
    parse_score,
)
from kit.submission import validate_submission

DEFAULT_TIMEOUT = 1800.0  # seconds to wait for a score
POLL_DELAY, LONGEST_POLL_DELAY = 2.0, 60.0  # seconds; each wait is half as long again as the last
TOKEN_LENGTH = 12  # hexadecimal digits of the file's SHA-256, by which its submission is found


def submit(
    csv: str | Path,
    message: str,
    sample: str | Path | None = None,
    competition: str = SLUG,
    timeout: float = DEFAULT_TIMEOUT,
    dry_run: bool = False,
    ledger: str | Path = LEDGER,
    run: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> dict:
    """Validate `csv`, send it once, wait at most `timeout` seconds; the COMPLETE ledger entry.

    A file that is already on its way is waited for instead. With `dry_run` everything that needs
    no credentials is done and the entry is returned with status DRY RUN. Raises `KaggleError` for
    everything else, a submission that Kaggle rejected or has not scored in time included.
    """
    csv, ledger = Path(csv), Path(ledger)
    content = read_content(csv, sample)
    entry = describe_submission(csv, content, message, competition, run)
    earlier = find_entry(ledger, competition, entry["sha256"])
    if earlier is not None:
        refuse_repeat(earlier)
        entry = earlier
    payload = gzip.compress(content, mtime=0)
    if dry_run:
        would = "would go" if earlier is None else f"went before, as submission {entry['ref']},"
        print(f"Dry run: {csv} is valid; {len(payload):,} bytes {would} to {competition}.")
        return entry | {"status": "DRY RUN"}
    client = CompetitionClient(competition, sleep)
    with _alone(ledger):
        # Another call may have sent the file while this one waited for its turn.
        entry = earlier or find_entry(ledger, competition, entry["sha256"]) or entry
        if entry.get("ref") is None:
            entry["ref"] = send_once(client, csv, payload, entry)
            append_entry(ledger, entry)
    print(f"Submission {entry['ref']}: waiting for its score.", flush=True)
    return wait_for_score(client, entry, ledger, timeout)


@contextlib.contextmanager
def _alone(ledger: Path) -> Iterator[None]:
    """One sender at a time: two calls of the same file must not both create a submission."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with open(ledger.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_content(csv: Path, sample: str | Path | None = None) -> bytes:
    """The text of a valid submission file (`.csv` or `.csv.gz`); `KaggleError` with the reason."""
    if not csv.name.endswith((".csv", ".csv.gz")):
        raise KaggleError(f"{csv}: a submission is a .csv or a .csv.gz file.")
    try:
        validate_submission(csv, sample)
        data = csv.read_bytes()
        return gzip.decompress(data) if csv.suffix == ".gz" else data
    except (LabelError, EOFError) as error:
        raise KaggleError(f"The submission is not valid: {error}.") from None
    except OSError as error:
        name = error.filename or csv
        raise KaggleError(f"{name}: cannot be read: {error.strerror or error}.") from None


def refuse_repeat(entry: dict) -> None:
    """Raise `KaggleError` where `entry` has its score or was rejected: the file was sent before."""
    ref, sent = entry["ref"], entry["time"]
    if entry["status"] == "COMPLETE":
        raise KaggleError(
            f"This file was sent before, as submission {ref} on {sent} ({describe_scores(entry)}): "
            "nothing was sent."
        )
    if entry["status"] == "ERROR":
        raise KaggleError(
            f"This file was sent before, as submission {ref} on {sent}, and rejected "
            f"({entry['error']}): correct the file; nothing was sent."
        )


def send_once(client: CompetitionClient, csv: Path, payload: bytes, entry: dict) -> int:
    """Create the submission of `payload` unless Kaggle has it already; its ref."""
    check_competition(client)
    token = entry["sha256"][:TOKEN_LENGTH]
    ref = find_submission(client, token)
    if ref is not None:
        print(f"Kaggle already has this file, as submission {ref}: it is not sent again.")
        return ref
    check_limits(client)
    blob = retry(lambda: upload_payload(client, csv, payload), client.sleep)
    ref = create_submission(client, blob, f"[{token}] {entry['message']}", token)
    print(f"Submission {ref} created.", flush=True)
    return ref


def check_competition(client: CompetitionClient) -> None:
    """Raise `KaggleError` where the competition takes no files from this account.

    A deadline in the past alone is no reason: late submissions are scored.
    """
    competition = client.call("GetCompetition")
    name = client.competition
    page = f"https://www.kaggle.com/competitions/{name}"
    if not competition.user_has_entered:
        raise KaggleError(
            f"This account has not joined {name}: accept the rules at {page}/rules, and run the "
            "same command again."
        )
    if competition.submissions_disabled:
        raise KaggleError(f"{name} is closed: its host takes no more submissions.")
    if competition.is_kernels_submissions_only:
        raise KaggleError(
            f"{name} takes notebooks only: push the notebook and submit its output at {page}."
        )


def check_limits(client: CompetitionClient) -> None:
    """Raise `KaggleError` where no submission is left today, or at all."""
    limits = client.call("GetSubmissionLimits")
    # Four zeros say that the account has no team yet, not that nothing is left.
    if limits.num_allowed_now > 0 or not (limits.num_today or limits.num_total):
        return
    if limits.limited_by_total:
        raise KaggleError(
            f"All submissions to {client.competition} are used up ({limits.num_total} sent): "
            "nothing more can be sent."
        )
    raise KaggleError(
        f"The daily limit of {client.competition} is reached ({limits.num_today} sent today): run "
        "the same command again after midnight UTC."
    )


def find_submission(client: CompetitionClient, token: str) -> int | None:
    """The ref of this account's submission whose description carries `token`, None without one."""
    for submission in iterate_submissions(client):
        if f"[{token}]" in submission.description:
            return submission.ref
    return None


def upload_payload(client: CompetitionClient, csv: Path, payload: bytes) -> str:
    """Upload the gzipped file, in one attempt; the token that stands for it."""
    upload = client.call(
        "StartSubmissionUpload",
        retries=False,
        content_length=len(payload),
        last_modified_epoch_seconds=int(csv.stat().st_mtime),
        file_name=csv.name if csv.suffix == ".gz" else f"{csv.name}.gz",
    )
    put_blob(upload.create_url, payload)
    return upload.token


def create_submission(client: CompetitionClient, blob: str, description: str, token: str) -> int:
    """Create the submission exactly once, even if Kaggle's reply is lost; its ref.

    It is looked for before each attempt. Only an answer of 429 says for certain that nothing was
    created, and is tried again; after any other failure that may pass, the submission is looked
    for and never created a second time.
    """

    def create() -> int:
        ref = find_submission(client, token)
        if ref is not None:
            return ref
        try:
            answer = client.call(
                "CreateSubmission",
                retries=False,
                blob_file_tokens=blob,
                submission_description=description,
            )
        except KaggleError as error:
            if error.status == 429 or not error.passing:
                raise
            return look_for_submission(client, token, str(error))
        return answer.ref or look_for_submission(client, token, answer.message)

    return retry(create, client.sleep)


def look_for_submission(client: CompetitionClient, token: str, reason: str) -> int:
    """The ref of a submission that may just have been created; `KaggleError` if it never shows."""
    for delay in RETRY_DELAYS:
        client.sleep(delay)
        ref = find_submission(client, token)
        if ref is not None:
            return ref
    raise KaggleError(
        "Kaggle did not confirm the submission and does not list it: wait a few minutes, and run "
        f"the same command again, which looks for it before it sends anything ({reason})"
    )


def wait_for_score(
    client: CompetitionClient, entry: dict, ledger: Path, timeout: float = DEFAULT_TIMEOUT
) -> dict:
    """Poll until the submission of `entry` is COMPLETE; its entry, written to the ledger.

    Raises `KaggleError` when Kaggle rejects it, when `timeout` seconds are over, when Kaggle
    refuses to say, and on Ctrl-C; after the last three the same command waits again.
    """
    ref = entry["ref"]
    again = f"submission {ref} is in the ledger, and the same command waits for it again."
    try:
        submission = poll_submission(client, ref, timeout)
    except KeyboardInterrupt:
        raise KaggleError(f"Interrupted while waiting for the score; {again}") from None
    except KaggleError as error:
        raise KaggleError(f"{str(error).rstrip('.')}; {again}", error.status) from None
    entry = entry | {
        "status": submission.status.name,
        "public_score": parse_score(submission.public_score),
        "private_score": parse_score(submission.private_score),
    }
    if entry["status"] == "ERROR":
        entry["error"] = " ".join(submission.error_description.split()) or "no reason given"
    append_entry(ledger, entry)
    if entry["status"] == "ERROR":
        raise KaggleError(
            f"Kaggle rejected submission {ref} ({entry['error'].rstrip('.')}): correct the file, "
            "and send it again."
        )
    print(f"Submission {ref}: {describe_scores(entry)}.", flush=True)
    return entry


def poll_submission(client: CompetitionClient, ref: int, timeout: float):
    """Kaggle's final answer about submission `ref`; `KaggleError` after `timeout` seconds.

    A 404 soon after creation only means that the submission is not listed yet, and a passing
    failure is not the submission's: both are waited out.
    """
    deadline = time.monotonic() + timeout
    delay = POLL_DELAY
    while True:
        pause, state = delay, "is still PENDING"
        try:
            submission = client.call("GetSubmission", retries=False, ref=ref)
            if submission.status.name != "PENDING":
                return submission
        except KaggleError as error:
            if not (error.passing or error.status == 404):
                raise
            pause = max(delay, error.retry_after or 0)
            state = f"got HTTP {error.status}" if error.status else "got no answer"
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise KaggleError(f"The wait for the score {state} after {timeout:g} seconds.")
        client.sleep(min(pause, remaining))
        delay = min(delay * 1.5, LONGEST_POLL_DELAY)
