"""The key of a run: only processes that have this file can talk to the servers of the run.

The file has mode 0600 and contains one pair of CURVE keys in ZeroMQ's text form (Z85). Server and
worker prove to each other that they have the secret key, and all traffic is encrypted.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import zmq

from thinwire.errors import UserError
from thinwire.files import read_json

Z85_LENGTH = 40


@dataclass(frozen=True)
class Key:
    """The pair of keys of a run, Z85."""

    public: bytes
    secret: bytes

    @classmethod
    def new(cls) -> Key:
        """A new random pair."""
        return cls(*zmq.curve_keypair())


def read_key(file: Path) -> Key:
    """Read the key in a file.

    Raises:
        UserError: the file does not exist, other users may read it, or it contains no key.
    """
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode & 0o077:
            raise UserError(
                f"{file} has mode {mode:04o}, so others may read the key: chmod 0600 it (and make "
                "a new one if others may have read it)"
            )
        found = read_json(file)
        key = Key(found["public"].encode(), found["secret"].encode())
        if zmq.curve_public(key.secret) == key.public and len(key.public) == Z85_LENGTH:
            return key
    except FileNotFoundError:
        raise UserError(
            f"there is no key file {file}: thinwire serve writes one, to be copied to the workers"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, zmq.ZMQError) as error:
        if isinstance(error, UserError):
            raise
    raise UserError(f"{file} is no key that thinwire serve has written")


def read_or_make_key(file: Path) -> tuple[Key, bool]:
    """Read the key in a file, or make one if there is no file; returns it and whether it is new.

    Raises:
        UserError: as `read_key`.
    """
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_key(file), False
    key = Key.new()
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump({"public": key.public.decode(), "secret": key.secret.decode()}, stream)
            stream.write("\n")
    except BaseException:  # half a file would be refused the next time
        file.unlink(missing_ok=True)
        raise
    return key, True
