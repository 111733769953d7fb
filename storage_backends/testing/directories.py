"""Tests of publication and verification of archives."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage_backends import errors
from storage_backends.base import ArrayStore, ArrayWriter
from storage_backends.capabilities import Finding, Verdict
from storage_backends.testing.archives import (
    Contents,
    broken,
    files_of,
    large_archive,
    one_bit_flipped,
    small_archive,
    stream,
)
from storage_backends.testing.assertions import assert_holds, assert_same_bits, assert_same_table
from storage_backends.testing.harness import BackendHarness


class PublicationTests(BackendHarness):
    """Tests that archives are published atomically, and that damage is found."""

    def findings(self, path: str) -> list[Finding]:
        """Findings of examining an archive and checking all of its pieces."""
        examined = self.backend.store.examine(path)
        checked = [piece.check() for piece in examined.pieces]
        return [*examined.findings, *(finding for finding in checked if finding is not None)]

    def test_what_was_written_is_not_damaged(self, path: str, large_path: str) -> None:
        for _ in range(2):
            # The second archive replaces the first, and is complete, too.
            self.write(path, small_archive(), replace=True).close()
            for archive in (path, large_path):
                findings = self.findings(archive)
                examined = self.backend.store.examine(archive)
                assert [f for f in findings if f.verdict is Verdict.DAMAGED or f.mendable] == []
                expected = [] if examined.has_checksums else [Verdict.UNKNOWN]
                assert [f.verdict for f in findings] == expected
                assert sum(piece.nbytes for piece in examined.pieces) == examined.nbytes
                assert (examined.nbytes > 0) == examined.has_checksums

    def test_every_byte_is_covered(self, path: str) -> None:
        self.write(path, small_archive()).close()
        examined = self.backend.store.examine(path)
        if not (self.local and examined.has_checksums):
            pytest.skip("there are no checksums of files")
        for file in files_of(path):
            for offset in sorted({0, os.path.getsize(file) // 2, os.path.getsize(file) - 1}):
                with one_bit_flipped(file, offset):
                    findings = self.findings(path)
                assert any(f.verdict is Verdict.DAMAGED and file in f.message for f in findings), (
                    file
                )
        assert self.findings(path) == []

    def test_missing_and_truncated_files_are_found(self, path: str) -> None:
        self.write(path, small_archive()).close()
        if not (self.local and self.backend.store.examine(path).has_checksums):
            pytest.skip("there are no checksums of files")
        for file in files_of(path):
            with open(file, "rb") as stream:
                content = stream.read()
            for damaged in (content[:-1], content + b"\0", None):
                os.remove(file)
                if damaged is not None:
                    with open(file, "xb") as stream:
                        stream.write(damaged)
                verdicts = {f.verdict for f in self.findings(path)}
                # Without the file of checksums the verdict is UNKNOWN.
                assert verdicts, file
                if damaged is not None:
                    assert Verdict.DAMAGED in verdicts, file
                with open(file, "wb") as stream:
                    stream.write(content)
        assert self.findings(path) == []

    def test_a_sound_archive_is_not_repaired(self, path: str) -> None:
        contents = small_archive()
        self.write(path, contents).close()
        assert list(self.backend.store.repair(path)) == []
        with pytest.raises(errors.OutputError, match=re.escape(path)):
            self.backend.store.add_checksums(path)
        assert self.standing(path) == [path]
        assert_holds(self.open(path), contents)

    def test_writer_is_closed_after_the_commit(self, path: str) -> None:
        contents = small_archive()
        with self.writing(path, contents) as writer:
            pass
        with pytest.raises(errors.ScdlError):
            writer.append("data", contents.arrays["data"])
        with pytest.raises(errors.ScdlError):
            writer.write_table("var/1", contents.tables["obs"])
        with pytest.raises(errors.ScdlError):
            writer.commit(contents.attrs)
        writer.abort()
        assert_holds(self.open(path), contents)

    def test_archive_does_not_exist_before_the_commit(self, path: str) -> None:
        contents = small_archive()
        with self.writing(path, contents):
            assert not self.backend.detect(path)
            with pytest.raises(errors.ArchiveNotFoundError, match=re.escape(path)):
                self.open(path)
        assert_holds(self.open(path), contents)
        assert self.standing(path) == [path]

    @pytest.mark.parametrize("replace", [False, True])
    @pytest.mark.parametrize(
        ("fail", "error"),
        [
            pytest.param(lambda writer: None, None, id="no commit"),
            pytest.param(lambda writer: list(broken(OSError)), OSError, id="error"),
            pytest.param(lambda writer: list(broken(SystemExit)), SystemExit, id="exit"),
            pytest.param(
                lambda writer: writer.write_table("var/1", stream(broken(ZeroDivisionError))),
                ZeroDivisionError,
                id="error in a stream",
            ),
            pytest.param(
                lambda writer: writer.commit({**small_archive().attrs, "no JSON": object()}),
                (TypeError, ValueError),
                id="error in the commit",
            ),
            pytest.param(lambda writer: [writer.abort() for _ in range(2)], None, id="abort"),
        ],
    )
    def test_nothing_left_without_a_commit(
        self, path: str, fail: Callable[[ArrayWriter], object], error: Any, replace: bool
    ) -> None:
        old, new = small_archive(30), small_archive()
        if replace:
            self.write(path, old).close()
        expected = pytest.raises(error) if error else contextlib.nullcontext()
        with expected, self.create(path, replace=replace) as writer:
            new.write(writer)
            fail(writer)
        with pytest.raises(errors.ScdlError):
            writer.commit(new.attrs)
        assert self.standing(path) == [path] * replace
        if replace:
            assert_holds(self.open(path), old)
        assert_holds(self.write(path, new, replace=replace), new)

    def test_existing_archive_is_kept(self, path: str) -> None:
        old, new = small_archive(30), small_archive()
        with self.create(path) as late:  # begun before the other writer's commit
            new.write(late)
            store = self.write(path, old)
            with pytest.raises(errors.ArchiveExistsError, match=re.escape(path)):
                late.commit(new.attrs)
        with pytest.raises(errors.ArchiveExistsError, match=re.escape(path)), self.create(path):
            pass
        assert_holds(store, old)
        assert_holds(self.open(path), old)
        assert self.standing(path) == [path]

    def test_replace(self, path: str) -> None:
        old, new = large_archive(), small_archive()
        before = self.write(path, old, replace=True)
        views = [(name, before.view(name)) for name in old.arrays]
        with self.writing(path, new, replace=True):
            during = self.open(path)
            assert_holds(self.open(path), old)
        assert_holds(self.open(path), new)
        assert self.standing(path) == [path]
        for store in (before, during):
            for name, values in old.arrays.items():
                assert_same_bits(store.read(name), values, name)
            with contextlib.suppress(errors.ScdlError):  # an error, or the table of the old archive
                assert_same_table(store.read_table("var/0"), old.tables["var/0"])
        for name, view in views:
            if view is not None:
                assert_same_bits(view, old.arrays[name], name)

    def test_operating_system_refuses(self, local_path: str) -> None:
        with pytest.raises(errors.ArchiveWriteError):
            self.create(os.path.join(local_path, "no", "parent"))
        assert self.standing(local_path) == []
        resource = pytest.importorskip("resource")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for contents in (large_archive(), Contents({}, large_archive().tables, {})):
            with self.create(local_path) as writer:
                try:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
                    with pytest.raises(errors.ArchiveWriteError) as caught:  # noqa: PT012
                        contents.write(writer)
                        # A backend may buffer small files until the commit.
                        writer.commit(contents.attrs)
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert caught.value.errno == errno.EFBIG
        assert self.standing(local_path) == []

    def test_missing_archive(self, store: ArrayStore, path: str) -> None:
        assert self.backend.detect(store.path)
        for missing in (path, "", "a\0b", "x" * 5000, "no-such-scheme://x"):
            assert not self.backend.detect(missing)
        with pytest.raises(errors.ArchiveNotFoundError, match=re.escape(path)):
            self.open(path)

    def test_path_of_another_format(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "file.txt").write_text("text")
        for foreign in map(str, tmp_path.iterdir()):
            assert not self.backend.detect(foreign)
            with pytest.raises((errors.ArchiveFormatError, errors.ArchiveNotFoundError)):
                self.open(foreign)

    def test_opening_writes_nothing(self, local_path: str) -> None:
        def files() -> list[tuple[Path, int, int]]:
            paths = [Path(local_path), *Path(local_path).rglob("*")]
            return sorted((file, file.stat().st_ino, file.stat().st_mtime_ns) for file in paths)

        contents = small_archive()
        self.write(local_path, contents).close()
        for file, _, _ in files():
            file.chmod(0o555 if file.is_dir() else 0o444)
        before = files()
        assert self.backend.detect(local_path)
        with self.open(local_path) as store:
            assert_holds(store, contents)
        assert files() == before
        assert self.standing(local_path) == [local_path]
