"""Which ids were there before, exactly, in bounded memory however many there are."""

import errno
import sqlite3

MEMORY_KB = 65_536
"""Memory for ids; what does not fit goes to a temporary file that has no name."""


class SeenIds:
    """A set of ids that only grows; its temporary file lasts until it is closed."""

    def __init__(self) -> None:
        # The name "" is a file of SQLite's own, gone with the connection or the process.
        self._ids = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{MEMORY_KB}"):
            self._ids.execute(f"PRAGMA {pragma}")
        self._ids.execute("CREATE TABLE ids (id BLOB PRIMARY KEY) WITHOUT ROWID")
        self._ids.execute("BEGIN")

    def add(self, key: str) -> bool:
        """Add an id; returns whether it is new. Raises ``OSError`` when the disk is full."""
        try:
            added = self._ids.execute("INSERT OR IGNORE INTO ids VALUES (?)", (key.encode(),))
        except sqlite3.OperationalError as error:
            place = "the folder of temporary files (TMPDIR), which takes the ids that were seen"
            raise OSError(errno.ENOSPC, str(error), place) from None
        return added.rowcount == 1

    def close(self) -> None:
        """Free memory and disk."""
        self._ids.close()
