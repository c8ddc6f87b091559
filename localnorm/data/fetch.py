"""Brings a data set's files onto this machine.

A file gets its name only after its size and checksum hold; until then it is `.<name>.part`, and a run that was cut
off goes on from there. Each file has several addresses of the same bytes: whatever one address does wrong (404, 5xx,
time-out, stall, crawl, wrong length, wrong bytes), the next one continues, from the same part. pooch can do neither.
"""

import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import requests
import urllib3
from filelock import FileLock
from tqdm import tqdm

from localnorm import paths
from localnorm.data import sources

__all__ = ["fetch", "obtain"]

OFFLINE = "LOCALNORM_OFFLINE"
TIMEOUT = 30.0  # seconds without an answer or a byte until an address is given up
SLOW = 200_000  # bytes a second below which the other addresses are tried first
PATIENCE = 20.0  # seconds over which that speed is measured
TRIES = 3  # broken connections in a row that brought nothing
CHUNK = 1 << 18  # bytes


class _Failed(Exception):
    """An address that did not deliver; the message is the reason."""


class _TooSlow(_Failed):
    """An address that works, for when no other one does."""


class _Interrupted(_Failed):
    """An address that stopped half-way, and may go on from there."""


def obtain(plan: sources.Plan) -> tuple[sources.Source, list[Path]]:
    """Carry out a plan: the source and the paths of its files, after a download into data/raw where nothing lies here.

    Raises:
        FileNotFoundError: neither works; the message lists every place and every address with its reason, and how to
            supply the data.
    """
    if plan.source is not None:
        return plan.source, list(plan.files)
    if os.environ.get(OFFLINE, "") not in ("", "0"):
        urls = [url for source in plan.downloads for file in source.files for url in file.urls]
        raise sources.missing(plan.dataset, [f"{url}: not tried, {OFFLINE} is set" for url in urls])
    reasons: list[str] = []
    for source in plan.downloads:
        try:
            return source, [fetch(file, paths.raw()) for file in source.files]
        except ConnectionError as error:
            reasons += str(error).splitlines()
    raise sources.missing(plan.dataset, reasons)


def fetch(file: sources.File, folder: Path) -> Path:
    """Download one file into `folder`, from the first of its addresses that delivers it whole and right.

    A second process that wants the same file waits for the first.

    Raises:
        ConnectionError: no address delivers; one line each, with its reason.
        ValueError: another file has its name already.
    """
    target = folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.exists():
            if reason := sources.mismatch(file, target):
                raise ValueError(f"{target} is not the published file: {reason}; remove it to download it again")
            return target
        bar = tqdm(
            desc=file.name,
            total=file.size,
            initial=_size(part),
            unit="B",
            unit_scale=True,
            dynamic_ncols=True,
            file=sys.stderr,
        )
        with bar:
            _try_each(file, part, bar)
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        part.replace(target)
    return target


def _try_each(file: sources.File, part: Path, bar: tqdm) -> None:
    """Every address with a demand on its speed, then the slow ones once more without."""
    reasons, slow = {}, []
    for url in file.urls:
        try:
            return _deliver(file, url, part, bar, SLOW)
        except _TooSlow as reason:
            slow.append(url)
            reasons[url] = reason
        except _Failed as reason:
            reasons[url] = reason
    for url in slow:
        try:
            return _deliver(file, url, part, bar, 0)
        except _Failed as reason:
            reasons[url] = reason
    raise ConnectionError("\n".join(f"{url}: {reason}" for url, reason in reasons.items()))


def _deliver(file: sources.File, url: str, part: Path, bar: tqdm, slowest: float) -> None:
    """Complete `part` from one address and check it; a broken connection is taken up again while that brings bytes."""
    alone = _size(part) == 0  # no other address, nor an earlier run, had a share in the bytes
    fruitless = 0
    while True:
        before = _size(part)
        try:
            published = _transfer(file, url, part, bar, slowest)
        except _Interrupted:
            fruitless = 0 if _size(part) > before else fruitless + 1
            if fruitless == TRIES:
                raise
            continue
        reason = sources.mismatch(replace(file, checksum=file.checksum or published), part)
        if not reason:
            return
        part.unlink()
        if alone:
            raise _Failed(reason)
        alone = True


def _transfer(file: sources.File, url: str, part: Path, bar: tqdm, slowest: float) -> str:
    """One request for the bytes that `part` still lacks; returns the checksum that the server itself gives, or ""."""
    start = _size(part)
    if start == file.size:
        return ""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416:
                part.unlink()
                raise _Interrupted(f"no bytes from {start:,} on")
            if response.status_code not in (200, 206):
                raise _Failed(f"HTTP {response.status_code} {response.reason}")
            if response.headers.get("Content-Type", "").startswith("text/html"):
                raise _Failed("a web page instead of the file")
            if response.status_code == 206:
                span, _, length = response.headers.get("Content-Range", "").partition("/")
                if span != f"bytes {start}-{span.rpartition('-')[2]}":
                    raise _Failed(f"bytes from {start:,} on were asked for, it sends {span or 'an unnamed range'}")
            else:
                length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
            if None not in (total, file.size) and total != file.size:
                raise _Failed(f"{total:,} bytes, {file.size:,} expected")
            bar.total, bar.n = total or file.size, start
            # a server without ranges sends all again: what is on disk is read past
            _receive(response.raw, part, start if response.status_code == 200 else 0, bar, slowest)
            return _published(response)
    except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
        raise (_TooSlow if slowest else _Interrupted)(f"no byte within {TIMEOUT:g} s") from error
    except urllib3.exceptions.HTTPError as error:
        raise _Interrupted(f"the connection broke after {_size(part):,} bytes") from error
    except requests.RequestException as error:
        raise _Failed(_innermost(error)) from error


def _receive(stream: urllib3.HTTPResponse, part: Path, skip: int, bar: tqdm, slowest: float) -> None:
    """Append the stream to `part` but for its first `skip` bytes."""
    since, received = time.monotonic(), 0
    with part.open("ab") as output:
        while chunk := stream.read1(CHUNK, decode_content=False):
            output.write(chunk[skip:])
            bar.update(len(chunk[skip:]))
            skip = max(skip - len(chunk), 0)
            received += len(chunk)
            if (elapsed := time.monotonic() - since) > PATIENCE:
                if received < slowest * elapsed:
                    raise _TooSlow(f"{received / elapsed / 1000:,.0f} kB/s")
                since, received = time.monotonic(), 0


def _published(response: requests.Response) -> str:
    """Hugging Face names the SHA-256 of a large file in the answer that redirects to it."""
    for answer in (*response.history, response):
        digest = answer.headers.get("X-Linked-Etag", "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", digest):
            return f"sha256:{digest}"
    return ""


def _innermost(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return f"{type(error).__name__}: {error}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
