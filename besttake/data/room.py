"""The disk that a folder of kept files may take: what was used longest ago goes first, whoever has written it."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)  # every process says what it has removed, not only the one that speaks for all

KEEP = 0.9
"""The share of the limit that is left when files are thrown out, so that it is seldom done."""

BLOCK = 4096
"""Bytes of disk that files are a multiple of."""

SHARE = 64
"""A process weighs the folder again when it has written this part of the limit: others may be writing as well."""

ABANDONED = 86400
"""Seconds after which a half-written file is what a kill has left."""


class DiskSpace:
    """The limit of a folder `XX/NAME.suffix` that any number of processes write to and throw out of."""

    def __init__(self, folder: Path, limit: int, suffix: str):
        """
        Args:
            limit: bytes of disk, as blocks count.
        """
        self.folder, self.limit, self.suffix = folder, limit, suffix
        self._left = 0  # bytes that may be written before the folder is weighed again

    def used(self, path: Path) -> None:
        """Note that a file was of use."""
        with suppress(OSError):  # it is gone, or another user's
            os.utime(path)

    def make(self, size: int) -> bool:
        """Make room for a file of so many bytes that is about to be written; whether there can be any."""
        wanted = _on_disk(size)
        if wanted > self.limit:
            return False
        if wanted > self._left:
            self._left = max(wanted, min(self._weigh(wanted) // 2, self.limit // SHARE))
        self._left -= wanted
        return True

    def _weigh(self, wanted: int) -> int:
        """Throw out what is too much; the bytes that are free. Another process may be doing the same just now."""
        found = []
        for path in self.folder.glob("??/*"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                if path.suffix == self.suffix:
                    found.append((stat.st_mtime_ns, _on_disk(stat.st_size), path))
                elif path.suffix == ".tmp" and stat.st_mtime < time.time() - ABANDONED:
                    path.unlink()
        total = held = sum(size for _, size, _ in found)
        if held + wanted > self.limit:
            removed = 0
            for _, size, path in sorted(found):
                if total + wanted <= KEEP * self.limit:
                    break
                with suppress(PermissionError):
                    path.unlink(missing_ok=True)
                    total, removed = total - size, removed + 1
            told = self.folder, format_bytes(held), format_bytes(self.limit), removed, format_bytes(held - total)
            log.info("%s held %s of at most %s: the %d files used longest ago are removed, %s", *told)
        return max(0, self.limit - total)


def _on_disk(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def format_bytes(size: int) -> str:
    """Bytes in words: "4.1 kB", "1.5 GB"."""
    unit, name = (1e9, "GB") if size >= 1e9 else (1e6, "MB") if size >= 1e6 else (1e3, "kB")
    return f"{size / unit:.3g} {name}"
