"""Whatever goes wrong with a download, it ends with the right file or a clear error, and never with a wrong file."""

import hashlib
import random
import re
import threading
import time
from copy import deepcopy

import pytest
from data_fixtures import Route, Server, enter_project, fetch_in_child, kill_after
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localnorm.data import fetch as module
from localnorm.data import sources
from localnorm.data.fetch import fetch, obtain

CONTENT = random.Random(0).randbytes(300_000)
WRONG = random.Random(1).randbytes(len(CONTENT))


@pytest.fixture
def raw(tmp_path, monkeypatch):
    raw = enter_project(tmp_path, monkeypatch)
    monkeypatch.setattr(module, "TIMEOUT", 0.8)
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    return raw


def published(server: Server, *names: str, **changes) -> sources.File:
    values = {"checksum": f"sha256:{hashlib.sha256(CONTENT).hexdigest()}", "size": len(CONTENT)} | changes
    return sources.File("file.bin", urls=tuple(server.url(name) for name in names), **values)


BROKEN = {
    "404": (Route(status=404), "HTTP 404"),
    "500": (Route(status=500), "HTTP 500"),
    "503": (Route(status=503), "HTTP 503"),
    "wrong content": (Route(WRONG), "expected"),
    "wrong length": (Route(CONTENT[:-1]), "299,999 bytes, 300,000 expected"),
    "too long": (Route(CONTENT + b"x"), "300,001 bytes, 300,000 expected"),
    "a web page": (Route(CONTENT, headers={"Content-Type": "text/html; charset=utf-8"}), "a web page"),
    "always cut": (Route(CONTENT, cuts=[0] * 9), "the connection broke after 0 bytes"),
    "stalls": (Route(CONTENT, stall_at=1000), "no byte within 0.8 s"),
    "announces more": (Route(CONTENT, length=300_500), "300,500 bytes, 300,000 expected"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_address_is_passed_over(raw, fault):
    with Server({"broken": deepcopy(BROKEN[fault][0]), "last": Route(CONTENT)}) as server:
        path = fetch(published(server, "broken", "last"), raw)
    assert path == raw / "file.bin"
    assert path.read_bytes() == CONTENT
    assert not (raw / ".file.bin.part").exists()


@pytest.mark.parametrize("fault", BROKEN)
def test_where_only_a_broken_address_is_left_the_reason_is_named_and_no_file_appears(raw, fault):
    route, reason = deepcopy(BROKEN[fault])
    with Server({"broken": route}) as server, pytest.raises(ConnectionError, match=re.escape(reason)) as error:
        fetch(published(server, "broken"), raw)
    assert "/broken: " in str(error.value)
    assert not (raw / "file.bin").exists()


def test_of_many_mirrors_the_only_good_one_delivers(raw):
    routes = {name.replace(" ", "-"): deepcopy(route) for name, (route, _) in BROKEN.items()} | {
        "zz-last": Route(CONTENT)
    }
    with Server(routes) as server:
        assert fetch(published(server, *sorted(routes)), raw).read_bytes() == CONTENT


def test_an_address_that_nobody_answers_is_passed_over(raw):
    with Server({}) as gone:
        dead = gone.url("file")
    with Server({"last": Route(CONTENT)}) as server:
        file = published(server, "last")
        file = sources.File(file.name, file.checksum, file.size, (dead, *file.urls))
        assert fetch(file, raw).read_bytes() == CONTENT


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(CONTENT) - 1), max_size=5), ranges=st.booleans())
def test_connections_cut_at_any_bytes_end_in_the_right_file(raw, cuts, ranges):
    (raw / "file.bin").unlink(missing_ok=True)
    routes = {"cut": Route(CONTENT, cuts=list(cuts), ranges=ranges), "last": Route(CONTENT, ranges=ranges)}
    with Server(routes) as server:
        assert fetch(published(server, "cut", "last"), raw).read_bytes() == CONTENT


def test_a_cut_connection_goes_on_where_it_broke(raw):
    route = Route(CONTENT, cuts=[100_000, 250_000])
    with Server({"cut": route}) as server:
        fetch(published(server, "cut"), raw)
    assert route.seen == [None, "bytes=100000-", "bytes=250000-"]


def test_the_next_mirror_goes_on_where_the_first_one_stalled(raw):
    last = Route(CONTENT)
    with Server({"stalls": Route(CONTENT, stall_at=120_000), "last": last}) as server:
        fetch(published(server, "stalls", "last"), raw)
    assert last.seen == ["bytes=120000-"]


def test_what_an_earlier_run_left_is_continued(raw):
    (raw / ".file.bin.part").write_bytes(CONTENT[:77_777])
    route = Route(CONTENT)
    with Server({"file": route}) as server:
        assert fetch(published(server, "file"), raw).read_bytes() == CONTENT
    assert route.seen == ["bytes=77777-"]


def test_a_server_without_ranges_is_read_past_what_is_there(raw):
    route = Route(CONTENT, cuts=[100_000], ranges=False)
    with Server({"file": route}) as server:
        assert fetch(published(server, "file"), raw).read_bytes() == CONTENT
    assert len(route.seen) == 2


def test_a_part_that_is_already_whole_is_checked_and_not_asked_for(raw):
    (raw / ".file.bin.part").write_bytes(CONTENT)
    route = Route(CONTENT)
    with Server({"file": route}) as server:
        assert fetch(published(server, "file"), raw).read_bytes() == CONTENT
    assert route.seen == []


@pytest.mark.parametrize("left", [WRONG[:50_000], WRONG, CONTENT + b"more"], ids=["start", "whole", "longer"])
def test_a_wrong_part_left_behind_is_thrown_away_and_fetched_anew(raw, left):
    (raw / ".file.bin.part").write_bytes(left)
    with Server({"file": Route(CONTENT)}) as server:
        assert fetch(published(server, "file"), raw).read_bytes() == CONTENT


def test_wrong_bytes_of_one_mirror_do_not_spoil_the_next(raw):
    half_wrong = Route(WRONG, stall_at=150_000)
    with Server({"wrong": half_wrong, "last": Route(CONTENT)}) as server:
        assert fetch(published(server, "wrong", "last"), raw).read_bytes() == CONTENT


def test_a_crawling_address_is_left_for_a_faster_one(raw):
    slow, fast = Route(CONTENT, piece=1000, pause=0.02), Route(CONTENT)  # 50 kB/s
    with Server({"slow": slow, "fast": fast}) as server:
        started = time.monotonic()
        assert fetch(published(server, "slow", "fast"), raw).read_bytes() == CONTENT
    assert time.monotonic() - started < 3  # the slow one alone takes 6 s
    assert len(fast.seen) == 1


def test_a_crawling_address_is_used_where_there_is_no_other(raw):
    content = CONTENT[:40_000]
    with Server({"slow": Route(content, piece=1000, pause=0.01), "gone": Route(status=404)}) as server:
        file = published(server, "slow", "gone", size=None, checksum=f"sha256:{hashlib.sha256(content).hexdigest()}")
        assert fetch(file, raw).read_bytes() == content


def test_without_a_published_checksum_the_servers_own_is_checked(raw):
    right = {"X-Linked-Etag": f'"{hashlib.sha256(CONTENT).hexdigest()}"'}
    with Server({"wrong": Route(WRONG, headers=right), "right": Route(CONTENT, headers=right)}) as server:
        file = published(server, "wrong", "right", checksum="", size=None)
        assert fetch(file, raw).read_bytes() == CONTENT


def test_a_file_that_is_there_is_not_fetched_again_and_a_wrong_one_is_not_overwritten(raw):
    route = Route(CONTENT)
    with Server({"file": route}) as server:
        file = published(server, "file")
        fetch(file, raw)
        fetch(file, raw)
        assert len(route.seen) == 1
        (raw / "file.bin").write_bytes(WRONG)
        with pytest.raises(ValueError, match=r"file\.bin is not the published file: sha256 .* remove it to download"):
            fetch(file, raw)
    assert (raw / "file.bin").read_bytes() == WRONG


def test_two_runs_at_once_download_once(raw):
    route = Route(CONTENT, piece=30_000, pause=0.02)
    with Server({"file": route}) as server:
        file = published(server, "file")
        threads = [threading.Thread(target=fetch, args=(file, raw)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (raw / "file.bin").read_bytes() == CONTENT
    assert len(route.seen) == 1


def test_progress_shows_the_bytes_on_stderr(raw, capfd):
    with Server({"file": Route(CONTENT)}) as server:
        fetch(published(server, "file"), raw)
    out, err = capfd.readouterr()
    assert out == ""
    assert "file.bin: 100%" in err
    assert "300k/300k" in err


def test_killed_at_twenty_random_moments_the_next_run_still_ends_with_the_right_file(raw):
    moments = random.Random(5)
    killed = 0
    route = Route(CONTENT, piece=10_000, pause=0.01)  # 0.3 s a file
    with Server({"file": route}) as server:
        file = published(server, "file")
        for _ in range(20):
            killed += kill_after(moments.uniform(0, 0.35), fetch_in_child, file, raw)
            if (raw / "file.bin").exists():
                assert (raw / "file.bin").read_bytes() == CONTENT
                (raw / "file.bin").unlink()
        assert fetch(file, raw).read_bytes() == CONTENT
    assert killed >= 10
    assert sum(seen is not None for seen in route.seen) >= 5  # runs that went on from where a killed one was


def test_the_next_source_is_tried_where_all_addresses_of_the_first_fail(raw, monkeypatch):
    monkeypatch.delenv("LOCALNORM_OFFLINE")
    with Server({"gone": Route(status=404), "good": Route(CONTENT)}) as server:
        first = sources.Source("First", "parquet", (published(server, "gone"),))
        second = sources.Source("Second", "parquet", (published(server, "good"),))
        mine = sources.DataSet("cifar10", "none", 10, 3, (first, second))
        monkeypatch.setitem(sources.DATASETS, "cifar10", mine)
        assert obtain(sources.plan("cifar10")) == (second, [raw / "file.bin"])


def test_where_everything_fails_each_address_stands_with_its_reason_and_the_way_out(raw, monkeypatch):
    monkeypatch.delenv("LOCALNORM_OFFLINE")
    with Server({"gone": Route(status=404), "sick": Route(status=500)}) as server:
        source = sources.Source("Mine", "parquet", (published(server, "gone", "sick"),))
        monkeypatch.setitem(sources.DATASETS, "cifar10", sources.DataSet("cifar10", "none", 10, 3, (source,)))
        with pytest.raises(FileNotFoundError) as error:
            obtain(sources.plan("cifar10"))
        message = str(error.value)
        for text in (f"{server.url('gone')}: HTTP 404", f"{server.url('sick')}: HTTP 500", str(raw), "LOCALNORM_DATA"):
            assert text in message
    assert not (raw / "file.bin").exists()


def test_offline_says_what_it_would_try_and_asks_nobody(raw, monkeypatch):
    route = Route(CONTENT)
    with Server({"file": route}) as server:
        source = sources.Source("Mine", "parquet", (published(server, "file"),))
        monkeypatch.setitem(sources.DATASETS, "cifar10", sources.DataSet("cifar10", "none", 10, 3, (source,)))
        with pytest.raises(FileNotFoundError, match="/file: not tried, LOCALNORM_OFFLINE is set"):
            obtain(sources.plan("cifar10"))
    assert route.seen == []


def test_a_local_file_wins_over_any_download(raw, tmp_path, monkeypatch):
    monkeypatch.delenv("LOCALNORM_OFFLINE")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file.bin").write_bytes(CONTENT)
    monkeypatch.setenv("LOCALNORM_DATA", str(mine))
    route = Route(CONTENT)
    with Server({"file": route}) as server:
        source = sources.Source("Mine", "parquet", (published(server, "file"),))
        monkeypatch.setitem(sources.DATASETS, "cifar10", sources.DataSet("cifar10", "none", 10, 3, (source,)))
        assert obtain(sources.plan("cifar10")) == (source, [mine / "file.bin"])
    assert route.seen == []
