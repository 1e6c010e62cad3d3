"""Size limit of a cache folder: the least recently used files are removed first."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)  # every process reports what it removed, not only the main one

KEEP_FRACTION = 0.9
"""Files are removed until the folder occupies this fraction of the limit, so that it rarely happens."""

BLOCK = 4096
"""Block size of the disk in bytes."""

RECHECK_FRACTION = 64
"""A process measures the folder again after writing 1 / this of the limit, since others may write as well."""

ABANDONED = 86400
"""Seconds after which an incomplete file is regarded as left over from an interrupted process."""


class DiskSpace:
    """The size limit of a folder `XX/NAME.suffix` that several processes write to."""

    def __init__(self, folder: Path, limit: int, suffix: str):
        """
        Args:
            limit: bytes on disk, in whole blocks.
        """
        self.folder, self.limit, self.suffix = folder, limit, suffix
        self._left = 0  # bytes that may be written before the folder is measured again

    def mark_used(self, path: Path) -> None:
        """Mark a file as recently used."""
        with suppress(OSError):  # it was removed, or belongs to another user
            os.utime(path)

    def reserve(self, size: int) -> bool:
        """Make room for a file of `size` bytes to be written; returns whether it fits into the limit."""
        needed = _disk_usage(size)
        if needed > self.limit:
            return False
        if needed > self._left:
            self._left = max(needed, min(self._make_room(needed) // 2, self.limit // RECHECK_FRACTION))
        self._left -= needed
        return True

    def _make_room(self, needed: int) -> int:
        """Remove files beyond the limit and return the free bytes. Other processes may do the same concurrently."""
        files = []
        for path in self.folder.glob("??/*"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                if path.suffix == self.suffix:
                    files.append((stat.st_mtime_ns, _disk_usage(stat.st_size), path))
                elif path.suffix == ".tmp" and stat.st_mtime < time.time() - ABANDONED:
                    path.unlink()
        total = before = sum(size for _, size, _ in files)
        if before + needed > self.limit:
            removed = 0
            for _, size, path in sorted(files):
                if total + needed <= KEEP_FRACTION * self.limit:
                    break
                with suppress(PermissionError):
                    path.unlink(missing_ok=True)
                    total, removed = total - size, removed + 1
            arguments = (
                self.folder,
                format_bytes(before),
                format_bytes(self.limit),
                removed,
                format_bytes(before - total),
            )
            log.info("%s had %s of at most %s: removed the %d least recently used files, %s", *arguments)
        return max(0, self.limit - total)


def _disk_usage(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def format_bytes(size: int) -> str:
    """A readable size: "4.1 kB", "1.5 GB"."""
    unit, name = (1e9, "GB") if size >= 1e9 else (1e6, "MB") if size >= 1e6 else (1e3, "kB")
    return f"{size / unit:.3g} {name}"
