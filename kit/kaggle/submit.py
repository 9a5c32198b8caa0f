"""Send a submission to Kaggle exactly once, wait for its score, and keep the ledger true."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.competition import SLUG
from kit.kaggle.connection import (
    AGAIN,
    LATER,
    CompetitionClient,
    KaggleError,
    grow_delays,
    put_blob,
    quote_reason,
)
from kit.kaggle.ledger import (
    LEDGER,
    append_entry,
    describe_scores,
    describe_submission,
    find_entries,
    iterate_submissions,
    lock_ledger,
    read_outcome,
    write_entry,
)
from kit.progress import log
from kit.submission import normalize_text, validate_submission

_DEFAULT_TIMEOUT = 1800.0  # seconds to wait for a score
POLL_DELAY, LONGEST_POLL_DELAY = 2.0, 60.0  # seconds; see `grow_delays`
_ROWS = 727_392  # of the stage-2 sample submission: 121,232 images with six labels
_REOPENED = "REOPENED"  # the status of a submission that was rejected and may be sent again
_TOKEN_LENGTH = 12  # hexadecimal digits of the file's SHA-256 that name its submission


def submit(
    csv: str | Path,
    message: str,
    sample: str | Path | None = None,
    competition: str = SLUG,
    timeout: float = _DEFAULT_TIMEOUT,
    dry_run: bool = False,
    ledger: str | Path = LEDGER,
    sleep: Callable[[float], None] = time.sleep,
) -> dict:
    """Validate `csv`, send it once, and wait at most `timeout` seconds for its score.

    Returns the ledger entry, whose status is COMPLETE. A file that was sent and has no score yet is
    waited for instead of sent; one that Kaggle rejected is refused until `reopen` is called. With
    `dry_run` everything that needs no credentials is done, and the entry returned has the status
    DRY RUN. Raises `LabelError` for an invalid file, `OSError` for one that cannot be read, and
    `KaggleError` for everything else, also for a submission that Kaggle rejected or has not scored
    in time.
    """
    csv, ledger = Path(csv), Path(ledger)
    content = _read_content(csv, sample, competition)
    entry = describe_submission(csv, content, message, competition)
    earlier = _find_unfinished(ledger, entry)
    payload = gzip.compress(content, mtime=0)
    if dry_run:
        would = "would go" if earlier is None else f"went before, as submission {earlier['ref']},"
        log.info(f"Dry run: {csv} is valid; {len(payload):,} bytes {would} to {competition}.")
        return (earlier or entry) | {"status": "DRY RUN"}
    client = CompetitionClient(competition, sleep)
    # One sender at a time: two calls for the same file must not both create a submission.
    with lock_ledger(ledger):
        # Another call may have sent the file while this one waited for its turn.
        entry = _find_unfinished(ledger, entry) or entry
        if entry["ref"] is None:
            rejected = len(find_entries(ledger, competition, entry["sha256"]))
            entry["ref"] = _send_once(client, csv, payload, entry, rejected)
            write_entry(ledger, entry)
    log.info(f"Submission {entry['ref']}: waiting for its score.")
    return _wait_for_score(client, entry, ledger, timeout)


def reopen(csv: Path, competition: str = SLUG, ledger: Path = LEDGER) -> None:
    """Let `submit` send a file once more that Kaggle rejected, by a line in the ledger."""
    content = _read_content(csv, None, "")
    sha256 = describe_submission(csv, content, "reopened", competition)["sha256"]
    earlier = find_entries(ledger, competition, sha256)
    if earlier and earlier[-1]["status"] == "ERROR":
        append_entry(ledger, earlier[-1] | {"status": _REOPENED})


def _read_content(csv: Path, sample: str | Path | None, competition: str) -> bytes:
    """The rows of a valid submission file, `.csv` or `.csv.gz`, as `normalize_text` gives them."""
    if not csv.name.endswith((".csv", ".csv.gz")):
        raise KaggleError(f"{csv}: a submission is a .csv or a .csv.gz file.")
    validate_submission(csv, sample)
    data = csv.read_bytes()
    content = normalize_text(gzip.decompress(data) if csv.suffix == ".gz" else data)
    rows = content.count(b"\n") - 1
    if sample is None and competition == SLUG and rows != _ROWS:
        raise KaggleError(
            f"{csv} has {rows:,} of the {_ROWS:,} rows of {SLUG}: nothing was sent. Give its "
            "sample submission with --sample (SAMPLE=) if it is right."
        )
    return content


def _find_unfinished(ledger: Path, entry: dict) -> dict | None:
    """The submission of the same content that waits for its score, or None.

    Raises `KaggleError` where it has its score, or was rejected.
    """
    earlier = find_entries(ledger, entry["competition"], entry["sha256"])
    if not earlier or earlier[-1]["status"] == _REOPENED:
        return None
    last = earlier[-1]
    before = f"This file was sent before, as submission {last['ref']} on {last['time']}"
    if last["status"] == "COMPLETE":
        raise KaggleError(f"{before} ({describe_scores(last)}): nothing was sent.")
    if last["status"] == "ERROR":
        raise KaggleError(
            f"{before}, and rejected ({last['error']}): correct the file, or send it as it is with "
            "--again (AGAIN=1); nothing was sent."
        )
    return last


def _send_once(
    client: CompetitionClient, csv: Path, payload: bytes, entry: dict, rejected: int
) -> int:
    """Create the submission of `payload` unless Kaggle has it already; return its ref.

    Kaggle `rejected` the same content so many times before.
    """
    _check_competition(client)
    token = entry["sha256"][:_TOKEN_LENGTH] + (f"-{rejected + 1}" if rejected else "")
    ref = _find_submission(client, token)
    if ref is not None:
        log.info(f"Kaggle already has this file, as submission {ref}: it is not sent again.")
        return ref
    _check_limits(client)
    blob = client.retry(lambda: _upload_payload(client, csv, payload))
    ref = _create_submission(client, blob, f"[{token}] {entry['message']}", token)
    log.info(f"Submission {ref} created.")
    return ref


def _check_competition(client: CompetitionClient) -> None:
    """Raise `KaggleError` where the competition takes no files from this account.

    A deadline in the past is no reason: late submissions are scored.
    """
    name = client.subject
    competition = client.call(lambda service: service.get_competition, competition_name=name)
    if not competition.user_has_entered:
        raise KaggleError(
            f"This account has not joined {name}: accept the rules at {client.page}/rules, and "
            f"{AGAIN}."
        )
    if competition.submissions_disabled:
        raise KaggleError(f"{name} is closed: its organizer takes no more submissions.")
    if competition.is_kernels_submissions_only:
        raise KaggleError(f"{name} takes notebooks only: submit your notebook at {client.page}.")


def _check_limits(client: CompetitionClient) -> None:
    """Raise `KaggleError` where no submission is left today, or at all."""
    name = client.subject
    limits = client.call(lambda service: service.get_submission_limits, competition_name=name)
    # Four zeros say that the account has no team yet, not that nothing is left.
    if limits.num_allowed_now > 0 or not (limits.num_today or limits.num_total):
        return
    if limits.limited_by_total:
        used = f"All submissions to {name} are used up ({limits.num_total} sent)"
        raise KaggleError(f"{used}: nothing more can be sent.")
    used = f"The daily limit of {name} is reached ({limits.num_today} sent today)"
    raise KaggleError(f"{used}: {AGAIN} after midnight UTC.")


def _find_submission(client: CompetitionClient, token: str) -> int | None:
    """The ref of this account's submission whose description carries `token`, or None."""
    found = (s.ref for s in iterate_submissions(client) if f"[{token}]" in s.description)
    return next(found, None)


def _upload_payload(client: CompetitionClient, csv: Path, payload: bytes) -> str:
    """Upload the gzipped file, in one attempt; return the token that stands for it."""
    upload = client.send(
        lambda service: service.start_submission_upload,
        competition_name=client.subject,
        content_length=len(payload),
        last_modified_epoch_seconds=int(csv.stat().st_mtime),
        file_name=csv.name if csv.suffix == ".gz" else f"{csv.name}.gz",
    )
    put_blob(upload.create_url, payload)
    return upload.token


def _create_submission(client: CompetitionClient, blob: str, description: str, token: str) -> int:
    """Create the submission exactly once, even if Kaggle's reply is lost; return its ref.

    The submission is looked for before each attempt. Only an answer of 429 says for certain that
    nothing was created, and is followed by another attempt; after any other passing failure the
    submission is looked for and never created a second time.
    """

    def create() -> int:
        ref = _find_submission(client, token)
        if ref is not None:
            return ref
        try:
            answer = client.send(
                lambda service: service.create_submission,
                competition_name=client.subject,
                blob_file_tokens=blob,
                submission_description=description,
            )
        except KaggleError as error:
            if error.status == 429 or not error.passing:
                raise
            return _await_listing(client, token, str(error))
        return answer.ref or _await_listing(client, token, answer.message)

    return client.retry(create)


def _await_listing(client: CompetitionClient, token: str, reason: str) -> int:
    """The ref of a submission that may just have been created, for which `reason` is known.

    Raises `KaggleError`, never a passing one: a repetition might create a second submission.
    """
    try:
        ref = client.wait_until(lambda: _find_submission(client, token))
    except KaggleError as error:
        error.passing = False
        raise
    if ref is None:
        raise KaggleError(
            f"Kaggle did not confirm the submission and does not list it: {LATER}, which looks for "
            f"it before it sends anything ({quote_reason(reason)})."
        )
    return ref


def _wait_for_score(client: CompetitionClient, entry: dict, ledger: Path, timeout: float) -> dict:
    """Wait until the submission of `entry` is COMPLETE; write its entry to the ledger, return it.

    Raises `KaggleError` when Kaggle rejects it, when `timeout` seconds are over, when Kaggle
    refuses to say, and on Ctrl-C; after the last three the same command waits again.
    """
    ref = entry["ref"]
    again = f"Submission {ref} is in the ledger, and the same command waits for it again."
    try:
        submission = _poll_submission(client, ref, timeout)
    except KeyboardInterrupt:
        raise KaggleError(f"Interrupted while waiting for the score. {again}") from None
    except KaggleError as error:
        raise KaggleError(f"{error} {again}", error.status) from None
    entry = entry | read_outcome(submission) | {"status": submission.status.name}
    if entry["status"] == "ERROR":
        entry["error"] = reason = entry["error"] or "no reason given"
    append_entry(ledger, entry)
    if entry["status"] == "ERROR":
        rejection = f"Kaggle rejected submission {ref} ({quote_reason(reason)})"
        raise KaggleError(
            f"{rejection}: correct the file, or send it as it is with --again (AGAIN=1)."
        )
    log.info(f"Submission {ref}: {describe_scores(entry)}.")
    return entry


def _poll_submission(client: CompetitionClient, ref: int, timeout: float) -> Any:
    """Kaggle's final answer about submission `ref`; `KaggleError` after `timeout` seconds."""

    def check() -> Any:
        try:
            submission = client.send(lambda service: service.get_submission, ref=ref)
        except KaggleError as error:
            if error.status == 404:  # soon after its creation it may not be listed yet
                return None
            raise
        return None if submission.status.name == "PENDING" else submission

    delays = grow_delays(POLL_DELAY, LONGEST_POLL_DELAY)
    submission = client.wait_until(check, delays, timeout)
    if submission is None:
        raise KaggleError(f"The wait for the score is still PENDING after {timeout:g} seconds.")
    return submission
