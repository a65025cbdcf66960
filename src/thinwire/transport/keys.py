"""The key of a run: who has this file may speak with its servers, and nobody else.

A file of mode 0600 with one pair of CURVE keys, in the text form of ZeroMQ (Z85). A server proves
that it has the secret key, and so does every worker; the wire is encrypted.
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
    """A run's pair of keys, Z85."""

    public: bytes
    secret: bytes

    @classmethod
    def new(cls) -> Key:
        """A pair that nobody else has."""
        return cls(*zmq.curve_keypair())


def read_key(file: Path) -> Key:
    """The key in a file.

    Raises:
        UserError: there is none, others may read it, or it is no key.
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
    """The key in a file, made and written if there is none; and whether it was made.

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
    except BaseException:  # half a key would stand in the way of a whole one
        file.unlink(missing_ok=True)
        raise
    return key, True
