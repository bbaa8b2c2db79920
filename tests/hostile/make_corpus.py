"""Writes the kept files; they are committed, and this is run again only to add to them.

python -m tests.hostile.make_corpus
"""

from pathlib import Path

from tests.hostile.make_containers import CONTAINERS, STREAMS, WEIGHTS
from tests.hostile.make_stores import write_stores

FILES = Path(__file__).with_name("files")


def main() -> None:
    """Write every file."""
    FILES.mkdir(exist_ok=True)
    for suffix, contents in (("rankfold", CONTAINERS), ("stream", STREAMS), ("safetensors", WEIGHTS)):
        for name, content in contents.items():
            (FILES / f"{name}.{suffix}").write_bytes(content)
    write_stores(FILES)


if __name__ == "__main__":
    main()
