"""API keys: whose they are, and the adapters that each may use."""

import hmac
import os
import secrets
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, final

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from rankfold.errors import SpecError
from rankfold.serve.library import fits_pattern

KEY_VARIABLE, ADMIN_VARIABLE = "RANKFOLD_API_KEY", "RANKFOLD_ADMIN_KEY"

_LEAST_LETTERS = 16
_MOST_BYTES = 16 << 20


Pattern = Annotated[str, Field(pattern=r"^([^*?\[\s]+\*?|\*)$")]
"""The name of an adapter, or the beginning of names with `*` behind it."""


@final
class ApiKey(BaseModel):
    """A key of a file.

    Args:
        key: The secret.
        name: Whose it is.
        adapters: The names of adapters that it may use; `team/*` stands for all that begin so.
        rows: The most rows that may wait or run at once; that of the server if None.
        is_admin: Whether it is for /admin, and for nothing else.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    key: Annotated[str, Field(min_length=_LEAST_LETTERS, pattern=r"^[!-~]+$")]
    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"\S")]
    adapters: Annotated[tuple[Pattern, ...], Field(min_length=1)] = ("*",)
    rows: Annotated[int, Field(gt=0)] | None = None
    is_admin: Annotated[bool, Field(alias="admin")] = False

    def may_use(self, adapter: str) -> bool:
        """Whether the key may use an adapter."""
        return not self.is_admin and fits_pattern(adapter, self.adapters)


class _KeyFile(RootModel[list[ApiKey]]):
    model_config = ConfigDict(strict=False)


ANYONE = ApiKey.model_construct(key="", name="anyone", adapters=("*",), rows=None, is_admin=False)
"""Stands for all clients of a server without keys."""


@final
class Keys:
    """The keys of a server.

    Args:
        keys: In any number; without one for requests, anyone may ask.

    Raises:
        SpecError: If two are the same.
    """

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        # Keys are looked up by a keyed hash, whose timing says nothing about them.
        self._secret = secrets.token_bytes(32)
        self._keys: dict[bytes, tuple[bytes, ApiKey]] = {}
        for key in keys:
            digest = self._digest(key.key.encode())
            if digest in self._keys:
                raise SpecError(f"'{key.name}' has the same key as another; give each its own.")
            self._keys[digest] = key.key.encode(), key
        self.is_open = all(key.is_admin for _, key in self._keys.values())
        self.has_admin = any(key.is_admin for _, key in self._keys.values())

    def find(self, token: str) -> ApiKey | None:
        """Return the key that a client sent; None if it is none. The comparison takes constant time."""
        sent = token.encode("utf-8", "surrogatepass")
        expected, key = self._keys.get(self._digest(sent), (b"", None))
        return key if hmac.compare_digest(expected, sent) else None

    def _digest(self, key: bytes) -> bytes:
        return hmac.new(self._secret, key, sha256).digest()


def read_keys(file: Path | None, environment: Mapping[str, str] | None = None) -> Keys:
    """Return the keys of a file, and those of the environment.

    The file is JSON: `[{"name": "shop", "key": "...", "adapters": ["shop/*"], "rows": 64}]`. The environment
    has RANKFOLD_API_KEY, which may use all adapters, and RANKFOLD_ADMIN_KEY.

    Raises:
        SpecError: If the file cannot be read, or a key is too short.
    """
    environment = os.environ if environment is None else environment
    keys = [] if file is None else _read_file(file)
    for variable, is_admin in ((KEY_VARIABLE, False), (ADMIN_VARIABLE, True)):
        if not (secret := environment.get(variable)):
            continue
        try:
            keys.append(ApiKey(key=secret, name=variable, is_admin=is_admin))
        except ValidationError as error:
            raise SpecError(
                f"the key in {variable} is no key; use {_LEAST_LETTERS} or more letters and digits."
            ) from error
    return Keys(keys)


def _read_file(file: Path) -> list[ApiKey]:
    try:
        with file.open("rb") as opened:
            text = opened.read(_MOST_BYTES)
        return _KeyFile.model_validate_json(text).root
    except OSError as error:
        raise SpecError(f"cannot read the keys of '{file}' ({error.strerror}); name a file.") from error
    except ValidationError as error:
        # The message must not show a key.
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise SpecError(
            f"'{file}' holds no keys ({place}: {first['msg']}); write "
            '[{"name": "shop", "key": "...", "adapters": ["shop/*"]}].'
        ) from error
