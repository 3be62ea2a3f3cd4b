"""The files of a SQLite database, which are for their owner only, its key and its copies among them::

path = Path("data.db")
keep_private(path)
secret = key_beside(path)
copy(path, "copy.db")
"""

import os
import secrets
import sqlite3
from contextlib import closing, suppress
from tempfile import NamedTemporaryFile


def keep_private(path):
    """Make a database's file where there is none, and take it, and what SQLite keeps beside it, from all but its owner.

    Git leaves it readable for all. What is somebody else's is theirs.
    """
    path.touch(0o600)
    for file in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        with suppress(PermissionError):
            if file.is_file():
                file.chmod(file.stat().st_mode & 0o700)


def key_beside(path):
    """Give a key of 256 bits: made once at random, whole or not at all, and kept in a file beside the database's.

    Who comes second leaves it as it is. Raises `OSError`, and `ValueError` where others can read it.
    """
    file = path.with_name(path.name + ".secret")
    if not file.exists():
        with NamedTemporaryFile("w", dir=file.parent) as draft, suppress(FileExistsError):
            draft.write(secrets.token_hex(32))
            draft.flush()
            os.link(draft.name, file)
    if file.stat().st_mode & 0o077:
        raise ValueError("must be for its owner only (chmod 600)")
    return file.read_text().strip()


def copy(path, target):
    """Copy a database, one moment of it, while it is in use; raises `OSError` where the target cannot be made.

    Raises `sqlite3.Error`, and leaves no target behind, where it cannot be read.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        live = sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True)
        live.execute("PRAGMA schema_version")
        with closing(live), closing(sqlite3.connect(target)) as copied:
            live.backup(copied)  # all pages in one go, so of one moment
    except sqlite3.Error:
        os.unlink(target)
        raise
