"""The packaged suites with all their profiles."""

import tomllib
from dataclasses import replace
from importlib.resources import files

from rankfold.bench.suites.suite_file import packaged_suites, read_suite


def _profiles(name):
    text = (files("rankfold.bench.suites") / "packaged" / f"{name}.toml").read_text("utf-8")
    return list(tomllib.loads(text).get("profiles", {})) or [None]


PROFILES = [(name, profile) for name in packaged_suites() for profile in _profiles(name)]


def packaged(name, profile):
    """Return a suite as it is run; one that has no task is given data on the command line."""
    suite = read_suite(name, profile)
    own = {} if suite.tasks or "task" in suite.base else {"data": "my.csv"}
    return replace(suite, base={**suite.base, **own})
