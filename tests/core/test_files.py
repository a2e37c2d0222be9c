"""Files that are written whole: what is replaced, what is left alone, and what is said."""

from __future__ import annotations

import errno
import os
import signal
import stat
from pathlib import Path

import pytest

from sparseconv.core.files import (
    check_writable,
    ctrl_c_waits,
    replacing,
    write_folder,
    write_whole,
)


def test_ctrl_c_is_not_lost_when_an_error_is_raised() -> None:
    def fail() -> None:
        with ctrl_c_waits():
            signal.raise_signal(signal.SIGINT)
            raise OSError("no space left")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    try:
        with pytest.raises(KeyboardInterrupt) as raised:
            fail()
        assert isinstance(raised.value.__context__, OSError)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    file, link = tmp_path / "there" / "a.json", tmp_path / "b.json"
    for content in ("old", "new"):  # the first time it leads nowhere
        if not link.is_symlink():
            link.symlink_to(file)
        check_writable(link)
        write_whole(link, content)
        assert link.is_symlink()
        assert file.read_text() == content


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, text in ((Path(os.devnull), "a device"), (pipe, "a pipe"), (tmp_path, "a folder")):
        with pytest.raises(ValueError, match=f"cannot be written .*{text}.*choose another file"):
            check_writable(path)
        with pytest.raises(OSError, match=text):
            write_whole(path, "text")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("late", [False, True])
def test_what_a_full_disk_says(late: bool, tmp_path: Path) -> None:
    path = tmp_path / "a"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail() -> None:
        with replacing(path):
            try:
                raise full
            except OSError:
                if late:  # as torch does
                    raise RuntimeError("[enforce fail at inline_container.cc:672]")  # noqa: B904
                raise

    with pytest.raises(
        OSError, match=f"No space left on device; {path} was not.*make room"
    ) as error:
        fail()
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeError, match="another"), replacing(path):
        raise RuntimeError("another")


def test_a_folder_is_written_as_a_whole(tmp_path: Path) -> None:
    own, linked, new = tmp_path / "own", tmp_path / "linked", tmp_path / "new" / "one"
    own.mkdir(mode=0o700)
    linked.symlink_to(own)
    for folder in (own, linked, new):
        write_folder(folder, {"a": "1", "b": "2"})
        assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "1", "b": "2"}
    assert own.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ValueError, match=r"full cannot be written .*choose another folder"):
        write_folder(tmp_path / "full", {"a": "1", "b/c": "no such folder"})
    assert not list((tmp_path / "full").iterdir())
