"""What the folders of a suite's runs are called: readable, and taken by every file system."""

import re
from collections.abc import Sequence
from hashlib import sha256

# Bytes of a folder's name before seed or trial. File systems take 255, and `<out>.unfinished` needs some.
_LONGEST = 210


def folder_name(parts: Sequence[str], end: str) -> str:
    """Return a name of its parts, without those that are empty.

    Args:
        parts: What the runs of one method have in common, such as the task; cut with a hash where it is long.
        end: What tells them apart, such as "seed0".
    """
    return f"{_shortened('-'.join(_plain(part) for part in parts if part))}-{_plain(end)}"


def _shortened(name: str) -> str:
    whole = name.encode()
    if len(whole) <= _LONGEST:
        return name
    return f"{whole[:_LONGEST].decode(errors='ignore')}~{sha256(whole).hexdigest()[:8]}"


def _plain(text: str) -> str:
    return re.sub(r"[^\w.=,+-]+", "_", text)
