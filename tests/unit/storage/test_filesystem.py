from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from instructpt.errors import ConditionFailedError, ConfigError, NotFoundError, StorageError
from instructpt.storage import FilesystemStore


def everything(root) -> list[str]:
    return sorted(name for _, folders, files in os.walk(root) for name in files)


@pytest.fixture
def store(tmp_path) -> FilesystemStore:
    return FilesystemStore(tmp_path / "root")


@pytest.fixture
def unprivileged():
    """Permissions do not bind root: become nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full_names_path_and_fix_and_leaves_nothing(store, monkeypatch, number):
    store.put("a/kept", b"old")

    def full(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda: store.put("a/kept", b"new"), lambda: store.create("a/new", b"new")):
        with pytest.raises(StorageError) as caught:
            write()
        assert not isinstance(caught.value, ConfigError)
        assert str(store.root / "a") in str(caught.value)
        assert "free space there" in str(caught.value)
    assert everything(store.root) == ["kept"]
    assert store.get("a/kept") == b"old"


def test_a_real_limit_on_file_size_leaves_nothing(tmp_path):
    """The kernel itself refuses here: no patching."""
    script = """
import resource, signal, sys
from instructpt.errors import StorageError
from instructpt.storage import FilesystemStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
store = FilesystemStore(sys.argv[1])
store.put("small", b"x" * 50_000)
try:
    store.put("big", b"x" * 5_000_000)
except StorageError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, cwd=os.getcwd()
    )
    assert f"cannot write {tmp_path}/big: File too large; free space there" in done.stdout
    assert everything(tmp_path) == ["small"]


def test_permission_denied_is_a_config_error(store, unprivileged):
    if os.geteuid() != 65534:
        store.root.mkdir()
        store.root.chmod(0o500)
    with pytest.raises(ConfigError) as caught:
        store.put("k", b"x")
    assert "Permission denied; give this user access" in str(caught.value)
    assert "root" in str(caught.value)


def test_unfinished_writes_are_never_listed(store):
    store.put("a", b"1")
    (store.root / ".instructpt-tmp-0123").write_bytes(b"half")
    assert [i.key for i in store.list()] == ["a"]


def test_a_failing_source_leaves_nothing(store, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(NotFoundError, match="folder"):
        store.put_file("k", tmp_path / "folder")
    assert everything(store.root) == []


def test_a_file_where_a_folder_is_needed(store):
    store.put("a", b"1")
    with pytest.raises(StorageError, match="want the same name") as caught:
        store.put("a/b", b"2")
    assert not isinstance(caught.value, NotFoundError)
    assert not store.exists("a/b")
    store.put("c/d", b"3")
    with pytest.raises(StorageError, match="want the same name"):
        store.put("c", b"4")
    with pytest.raises(NotFoundError, match="folder"):
        store.head("c")
    with pytest.raises(NotFoundError):
        store.get("c")


def test_absent_root_is_empty(tmp_path):
    store = FilesystemStore(tmp_path / "absent")
    assert list(store.list()) == []
    assert not store.exists("k")
    assert not (tmp_path / "absent").exists()


def test_files_have_the_mode_of_the_umask(store):
    before = os.umask(0o022)
    try:
        store.put("k", b"")
        store.create("l", b"")
    finally:
        os.umask(before)
    assert [store.path(k).stat().st_mode & 0o777 for k in ("k", "l")] == [0o644, 0o644]


def test_links_are_followed_and_broken_ones_named(store, tmp_path):
    store.put("a", b"1")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b").write_bytes(b"2")
    (store.root / "linked").symlink_to(tmp_path / "elsewhere")
    assert [i.key for i in store.list()] == ["a", "linked/b"]
    (store.root / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="broken is a link that leads nowhere"):
        list(store.list())


def test_circular_links_are_named(store):
    store.put("d/a", b"1")
    (store.root / "d" / "up").symlink_to(store.root / "d")
    with pytest.raises(StorageError, match="leads back"):
        list(store.list())


def test_no_hard_links_means_no_conditional_create(store, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "link", refuse)
    assert not store.supports_conditional_create()
    with pytest.raises(StorageError, match="no hard links"):
        store.create("k", b"")
    assert everything(store.root) == []


def test_create_excludes_other_processes(store):
    script = """
import sys
from instructpt.errors import ConditionFailedError
from instructpt.storage import FilesystemStore
store, won = FilesystemStore(sys.argv[1]), 0
for i in range(100):
    try:
        store.create(f"k{i}", sys.argv[2].encode())
    except ConditionFailedError:
        continue
    won += 1
print(won)
"""
    racers = [
        subprocess.Popen([sys.executable, "-c", script, str(store.root), name], stdout=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    assert sum(int(racer.communicate(timeout=60)[0]) for racer in racers) == 100
    owners = [store.get(f"k{i}") for i in range(100)]
    assert set(owners) <= {b"a", b"b"}
    with pytest.raises(ConditionFailedError, match="k0 already exists"):
        store.create("k0", b"c")


def test_closing_a_range_closes_the_file(store):
    store.put("k", b"0123456789")
    with store.open("k", start=2, length=3) as stream:
        assert stream.read(2) == b"23"
    assert stream.closed
