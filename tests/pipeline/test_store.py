"""The store: whole or absent, once or not, and every fault in plain words. The same tests on disk, in memory, on S3."""

import errno
import multiprocessing
import os
import pickle
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline import faults
from pipeline.errors import MissingObject, StoreError
from pipeline.store import Capabilities, ObjectInfo, Store, addresses, clear_errors, json_bytes, objects, open_filesystem, opening
from pipeline.store import local as local_disk
from tests.servers import S3Server, faulty


@pytest.fixture(params=["local", "memory", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "local":
        return Store(str(tmp_path / "deep" / "er"))
    if request.param == "memory":
        return Store(f"memory://{uuid.uuid4().hex}/x")
    server: S3Server = request.getfixturevalue("s3_server")
    return Store(f"s3://{server.new_bucket()}/pre/fix", server.options)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """No real waiting between tries; the waits asked for."""
    waits: list[float] = []
    monkeypatch.setattr(objects.time, "sleep", waits.append)
    yield waits


def test_what_was_put_is_got(any_store: Store) -> None:
    content = {"b.bin": bytes(range(256)) * 40, "a/b/ü #?%.json": b"{}", "a/empty": b""}
    for key, data in content.items():
        any_store.put(key, data)
    assert {key: any_store.get(key) for key in content} == content
    assert [any_store.size(key) for key in content] == [len(data) for data in content.values()]
    assert any_store.list() == sorted((ObjectInfo(k, len(v)) for k, v in content.items()), key=lambda o: o.key)
    assert any_store.list("a") == any_store.list("a/") == [ObjectInfo("a/b/ü #?%.json", 2), ObjectInfo("a/empty", 0)]
    assert any_store.child("a").list("b") == [ObjectInfo("b/ü #?%.json", 2)]
    any_store.put("b.bin", b"new")
    assert any_store.get("b.bin") == b"new"
    assert any_store.exists("b.bin") and not any_store.exists("a") and not any_store.exists("b.bin/x")


def test_json_is_the_same_bytes_for_the_same_value(any_store: Store) -> None:
    any_store.put_json("x.json", {"b": "größe", "a": [1, None]})
    assert any_store.get_json("x.json") == {"a": [1, None], "b": "größe"}
    assert json_bytes({"b": 1, "a": 2}) == json_bytes({"a": 2, "b": 1})
    assert json_bytes({"\udcff": 1}).isascii()       # a folder whose name is no UTF-8
    any_store.put("y.json", b"{half")
    with pytest.raises(StoreError, match=r"y\.json is not valid JSON"):
        any_store.get_json("y.json")


def test_missing_objects_are_named(any_store: Store) -> None:
    for ask in (any_store.get, any_store.size, any_store.get_versioned):
        with pytest.raises(MissingObject, match=r"no/such\.json: there is no such object"):
            ask("no/such.json")
    assert any_store.list("no") == []
    any_store.delete("no/such.json")
    any_store.delete_prefix("no")


def test_delete(any_store: Store) -> None:
    for key in ("a/1", "a/2", "ab/3", "b/4"):
        any_store.put(key, b"x")
    any_store.delete("a/1")
    assert [o.key for o in any_store.list()] == ["a/2", "ab/3", "b/4"]
    any_store.delete_prefix("a")                     # not "ab"
    assert [o.key for o in any_store.list()] == ["ab/3", "b/4"]
    with pytest.raises(StoreError, match="refused to delete the whole"):
        any_store.delete_prefix("")


def test_copy(any_store: Store) -> None:
    any_store.put("a/x", b"one")
    any_store.put("b/y", b"old")
    any_store.copy("a/x", "b/y")
    any_store.copy("a/x", "new/folder/z")
    any_store.copy("a/x", "new/folder/z")            # again, onto the same content
    any_store.put("a/x", b"two")                     # what was copied is no longer bound to it
    assert any_store.get("b/y") == any_store.get("new/folder/z") == b"one"
    any_store.copy_all([("a/x", f"many/{i}") for i in range(20)])
    assert [any_store.get(info.key) for info in any_store.list("many")] == [b"two"] * 20
    with pytest.raises(MissingObject, match=r"can't copy .*a/none"):
        any_store.copy("a/none", "b/z")
    with pytest.raises(StoreError, match="is no key"):
        any_store.copy("a/x", "../z")
    assert len(any_store.list()) == 23


def test_copies_on_a_disk_are_names_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = Store(str(tmp_path))
    local.put("a", b"content")
    local.copy("a", "b")
    assert (tmp_path / "a").stat().st_ino == (tmp_path / "b").stat().st_ino

    def refuse(source: Any, target: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    local.copy("a", "c")
    assert local.get("c") == b"content" and (tmp_path / "c").stat().st_nlink == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_folders(any_store: Store) -> None:
    assert any_store.folders() == any_store.folders("x") == []
    for key in ("x/b/1", "x/b/2", "x/a/c/d", "x/e", "y/f"):
        any_store.put(key, b"")
    assert any_store.folders() == ["x", "y"] and any_store.folders("x") == ["a", "b"] and any_store.folders("x/b") == []


def test_deleting_a_folder_takes_few_requests(s3_server: S3Server) -> None:
    with faulty(s3_server) as proxy:
        remote = Store(f"s3://{s3_server.new_bucket()}/p", proxy.server.options)
        remote.put_all_if_absent([(f"gone/{i}/ü &<{i}>", b"x") for i in range(30)] + [("stays", b"x"), ("gone2/x", b"x")])
        before = len(proxy.seen)
        remote.delete_prefix("gone")
        remote.delete_prefix("gone")
        assert len(proxy.seen) - before <= 6
        assert [info.key for info in remote.list()] == ["gone2/x", "stays"]


def test_put_if_absent(any_store: Store) -> None:
    assert any_store.put_if_absent("k", b"one")
    assert not any_store.put_if_absent("k", b"two")
    assert any_store.put_if_absent("k", b"one")      # what lies there is what was asked for
    assert any_store.get("k") == b"one"


@pytest.mark.parametrize("unnamed", [True, False], ids=["unnamed files", "temporary names"])
def test_put_all_if_absent(any_store: Store, monkeypatch: pytest.MonkeyPatch, unnamed: bool) -> None:
    monkeypatch.setattr(local_disk, "FILES_AT_A_TIME", 3)
    if not unnamed:                                  # no Linux, or a file system that knows no O_TMPFILE
        monkeypatch.setattr(local_disk, "_HAS_UNNAMED", False)
    any_store.put("d/2", b"before")
    wanted = [(f"d/{i}", b"%d" % i) for i in range(8)] + [("e/x", b"")]
    for _ in range(2):
        there = any_store.put_all_if_absent(wanted)
        assert there == [b"0", b"1", b"before", *(b"%d" % i for i in range(3, 8)), b""]
        assert [any_store.get(key) for key, _ in wanted] == there
    assert [o.key for o in any_store.list()] == [*(f"d/{i}" for i in range(8)), "e/x"]
    with pytest.raises(StoreError, match="is no key"):
        any_store.put_all_if_absent([("../x", b"")])


def test_put_if_absent_has_one_winner(any_store: Store) -> None:
    for race in range(5):
        with ThreadPoolExecutor(8) as threads:
            won = list(threads.map(lambda i: any_store.put_if_absent(f"race{race}", b"%d" % i), range(8)))  # noqa: B023
        assert sum(won) == 1
        assert any_store.get(f"race{race}") == b"%d" % won.index(True)


def _claim(url: str, number: int, barrier: Any, won: Any) -> None:
    barrier.wait()
    if Store(url).put_if_absent("k", b"%d" % number):
        won.put(number)


def test_put_if_absent_has_one_winner_among_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for race in range(5):
        url, barrier, won = str(tmp_path / str(race)), context.Barrier(4), context.SimpleQueue()
        rivals = [context.Process(target=_claim, args=(url, i, barrier, won)) for i in range(4)]
        for rival in rivals:
            rival.start()
        for rival in rivals:
            rival.join(20)
        winner = won.get()
        assert won.empty() and Store(url).get("k") == b"%d" % winner


def test_swap(any_store: Store) -> None:
    assert any_store.swap("p", b"1", None)
    assert not any_store.swap("p", b"2", None)
    data, token = any_store.get_versioned("p")
    assert data == b"1" and any_store.swap("p", b"2", token)
    assert not any_store.swap("p", b"3", token)
    assert any_store.get("p") == b"2"
    assert not any_store.swap("gone", b"3", token)


def test_swap_loses_no_update(any_store: Store) -> None:
    any_store.put("n", b"0")

    def add(_: int) -> None:
        while True:
            data, token = any_store.get_versioned("n")
            mine = b"%d %s" % (int(data.split()[0]) + 1, uuid.uuid4().hex.encode())
            if any_store.swap("n", mine, token):
                return

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(20)))
    assert any_store.get("n").split()[0] == b"20"


def test_a_pickled_store_finds_the_same_objects(any_store: Store) -> None:
    any_store.put("a/b", b"x")
    again = pickle.loads(pickle.dumps(any_store.child("a")))
    assert again.get("b") == b"x" and again.url == any_store.url + "/a"


@pytest.mark.parametrize("key", ["../x", "a/../b", "/abs", "a//b", "./a", "a\\b", "a\nb", "a/"])
def test_keys_cannot_lead_out(any_store: Store, key: str) -> None:
    for act in (any_store.get, lambda k: any_store.put(k, b""), any_store.delete, any_store.delete_prefix):
        with pytest.raises(StoreError, match="is no key"):
            act(key)


def test_probe_tells_what_the_store_can_do(any_store: Store) -> None:
    assert any_store.probe() == Capabilities(put_if_absent=True, swap=True, deletes=True, note="")
    assert any_store.list() == []


def test_a_store_that_ignores_conditions_is_found_out(s3_server: S3Server) -> None:
    with faulty(s3_server, strip_conditions=True) as proxy:
        careless = Store(f"s3://{s3_server.new_bucket()}/x", proxy.server.options)
        told = careless.probe()
        assert not told.put_if_absent and not told.swap
        assert "ignores conditional puts" in told.note and "one run at a time" in told.note
        sure = careless.child("y")                   # the child has learnt it
        assert sure.put_if_absent("k", b"1") and not sure.put_if_absent("k", b"2") and sure.get("k") == b"1"
        _, token = sure.get_versioned("k")
        assert sure.swap("k", b"3", token) and not sure.swap("k", b"4", token)
        assert not sure.swap("none", b"", token)


# local disk


def test_a_failed_put_leaves_the_old_object_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = Store(str(tmp_path))
    local.put("k", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"can't write .*/k: the disk is full; free some space and continue"):
        local.put("k", b"new")
    with pytest.raises(StoreError, match="disk is full"):
        local.put_if_absent("other", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["k"] and local.get("k") == b"old"


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"can't write /dev/full/x"):
        Store("/dev/full").put("x", b"1")


def test_no_hard_links_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Any, target: Any, **how: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    local = Store(str(tmp_path))
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda i: local.put_if_absent("k", b"%d" % i), range(8)))
    assert sum(won) == 1 and local.get("k") == b"%d" % won.index(True)
    assert local.put_all_if_absent([("k", b"late"), ("l", b"first")]) == [local.get("k"), b"first"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k", "l"]


def test_files_put_together_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptors: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    local = Store(str(tmp_path))
    local.put("a/old", b"old")
    with monkeypatch.context() as patched, pytest.raises(StoreError, match="disk is full"):
        patched.setattr(local_disk, "_to_disk", full)
        local.put_all_if_absent([(f"a/{i}", b"x") for i in range(5)])
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["old"]


def test_readers_see_old_or_new_never_a_part(tmp_path: Path) -> None:
    local, stop, odd = Store(str(tmp_path)), threading.Event(), []
    pages = [bytes([i]) * 200_000 for i in range(2)]
    local.put("k", pages[0])

    def read() -> None:
        while not stop.is_set():
            if local.get("k") not in pages:
                odd.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(60):
        local.put("k", pages[i % 2])
    stop.set()
    reader.join()
    assert not odd


def test_no_permission_is_told(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="no permission"):
        Store(str(tmp_path)).probe()


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"can't write .*file/x: a file lies where a folder must be"):
        Store(str(tmp_path / "file" / "x")).probe()


def test_urls_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("./out").url == Store(f"file://{tmp_path}/out/").url == Store("out").url == str(tmp_path / "out")
    assert Store("memory://a/b/").url == "memory://a/b" and Store("s3://bucket").child("x").url == "s3://bucket/x"
    with pytest.raises(StoreError, match="names no bucket"):
        Store("s3://")


# faults of object stores


@pytest.mark.parametrize("kind", ["500", "503", "lost", "cut", "half"])
def test_transient_faults_are_survived(s3_server: S3Server, kind: str, quick: list[float]) -> None:
    bucket = s3_server.new_bucket()
    for phase in (1, 2):
        with faulty(s3_server, lambda n, method, path, phase=phase: kind if n % 3 == phase else None) as proxy:
            shaky = Store(f"s3://{bucket}/{phase}", proxy.server.options)
            assert shaky.probe().put_if_absent
            for i in range(3):
                assert shaky.put_if_absent(f"k{i}", b"mine %d" % i)
                assert not shaky.put_if_absent(f"k{i}", b"yours")
                shaky.put(f"o{i}", b"x" * 1000)
            _, token = shaky.get_versioned("k0")
            assert shaky.swap("k0", b"moved", token) and not shaky.swap("k0", b"again", token)
            assert [shaky.get(f"k{i}") for i in (1, 2)] == [b"mine 1", b"mine 2"]
            assert len(shaky.list()) == 6 and shaky.size("o0") == 1000
            assert proxy.faults > 4
    if kind in ("500", "503"):
        assert quick and max(quick) <= objects.MAX_BACKOFF_S


@pytest.mark.parametrize(("kind", "message"), [
    ("denied", "no permission .*grant this user"), ("expired", "the credentials have expired; renew them and continue"),
    ("no bucket", "the bucket does not exist; create it"), ("503", r"tried 6 times\); check that it is up"),
])
def test_lasting_faults_are_told(s3_server: S3Server, kind: str, message: str, quick: list[float]) -> None:
    with faulty(s3_server, lambda n, method, path: kind) as proxy:
        with pytest.raises(StoreError, match=f"can't write s3://some-bucket/x/k: .*{message}"):
            Store("s3://some-bucket/x", proxy.server.options).put("k", b"1")
        assert len(proxy.seen) == (objects.MAX_TRIES if kind == "503" else 1)
    assert len(quick) == (objects.MAX_TRIES - 1 if kind == "503" else 0)


def test_probing_an_unreachable_store_takes_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"can't write s3://b/x: the store did not answer.*endpoint_url is right"):
        Store("s3://b/x", {"endpoint_url": "http://127.0.0.1:1", "key": "k", "secret": "s"}).probe()
    assert time.monotonic() - started < 60       # a hang, not a slow machine


def test_a_missing_bucket_is_told(s3_server: S3Server) -> None:
    with pytest.raises(StoreError, match="the bucket does not exist"):
        Store("s3://nobody-made-this/x", s3_server.options).probe()


def test_the_environment_is_honoured(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    plain = Store(f"s3://{s3_server.new_bucket()}/env")
    plain.put("k", b"1")
    assert plain.get("k") == b"1"


@pytest.mark.parametrize(("url", "message"), [
    ("gs://bucket/x", r"pip install 'ganmill\[gcs\]'"), ("az://bucket/x", r"pip install 'ganmill\[azure\]'"),
    ("htp://host/x", "unknown protocol htp://"),
])
def test_unknown_protocols_are_told(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        Store(url).probe()
    with pytest.raises(StoreError, match=message):
        open_filesystem(url)


def test_s3_without_its_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(protocol: str) -> type:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(addresses.fsspec, "get_filesystem_class", absent)
    with pytest.raises(StoreError, match=r"can't open s3://bucket/x: no driver .* pip install 'ganmill\[s3\]'"):
        Store("s3://bucket/x", {"key": "new"}).put("k", b"1")


def test_open_filesystem_reads_sources(tmp_path: Path, s3_server: S3Server) -> None:
    (tmp_path / "a.txt").write_text("hello")
    fs, path = open_filesystem(str(tmp_path))
    assert fs.cat_file(f"{path}/a.txt") == b"hello"
    bucket = s3_server.new_bucket()
    Store(f"s3://{bucket}/x", s3_server.options).put("a.txt", b"there")
    fs, path = open_filesystem(f"s3://{bucket}/x", s3_server.options)
    assert fs.cat_file(f"{path}/a.txt") == b"there"
    with (pytest.raises(StoreError, match="can't read s3://nobody-made-this/x"),
          clear_errors("read", "s3://nobody-made-this/x", s3_server.options)):
        open_filesystem("s3://nobody-made-this/x", s3_server.options)[0].cat_file("nobody-made-this/x")


# secrets


def test_no_secret_in_any_message(monkeypatch: pytest.MonkeyPatch, quick: list[float]) -> None:
    canaries = {"key": "canary-key", "secret": "canary-secret", "client_kwargs": {"aws_session_token": "canary-token"}}
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-from-env")
    url = "s3://user:canary-password@bucket/x"
    said = repr(Store(url, canaries)) + Store(url, canaries).where("k")
    for planted in ("canary-secret canary-from-env", "canary-token", "s3://u:canary-password@h"):
        for error in (PermissionError(planted), OSError(5, planted), RuntimeError(planted), TimeoutError(planted)):
            class Broken:
                def put(self, path: str, data: bytes, error: Exception = error) -> None:
                    raise error from ValueError(planted)  # noqa: B023

            monkeypatch.setattr(opening, "backend", lambda *a: Broken())
            with pytest.raises(StoreError) as caught:
                Store(url, canaries).put("k", b"1")
            said += str(caught.value) + repr(caught.value.__cause__)
    assert "canary" not in said and "***" in said


def test_secrets_are_known_by_name() -> None:
    options = {"endpoint_url": "http://host:9000", "password": "hush", "nested": [{"api_token": "whisper"}]}
    assert {"hush", "whisper"} <= faults.secrets_of(options)
    assert "http://host:9000" not in faults.secrets_of(options)
