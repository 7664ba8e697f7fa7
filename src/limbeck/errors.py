"""The errors that Limbeck raises on purpose.

Every one of them says in one line what was wrong, where (file, key, shard, repository), and what to do about it.
The command line prints that line and exits with `exit_code`; a library user catches `LimbeckError`.
"""


class LimbeckError(Exception):
    """Something failed that Limbeck understands: exit code 1."""

    exit_code = 1


class UserError(LimbeckError):
    """The request cannot be carried out as it was made (a wrong path, key, file or option): exit code 2."""

    exit_code = 2


class IntegrityError(LimbeckError):
    """Stored bytes are not what their digest, signature or schema says: exit code 1."""
