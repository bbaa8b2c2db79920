"""Records of 0.1.0, which had a command line where they now have a request.

Nothing else reads command lines: what this module returns is as if the present version had written it.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from rankfold.errors import DataError
from rankfold.runs.fields import explain_fault, fields_of, flag_of, value_type
from rankfold.runs.request import RunRequest

_OLD_FORMAT = 1


def upgrade_record(values: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON values of a record in the present format; unchanged if they are in it already.

    Raises:
        DataError: If its command cannot be read.
    """
    if values.get("format") != _OLD_FORMAT or "command" not in values:
        return values
    values = dict(values)
    request = request_of_command(values.pop("command")).to_dict()
    return _with_former_defaults({**values, "format": 2, "request": request})


def upgrade_start(values: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a run that began; 0.1.0 wrote its request beside it.

    Its configuration is brought to the present form too: a run that resumes is compared with it.

    Raises:
        DataError: If its command cannot be read.
    """
    if values.keys() != {"request", "record"}:
        return values
    request = {name: value for name, value in values["request"].items() if value is not None}
    record = _with_former_defaults({**upgrade_record(values["record"]), "request": request})
    method = {**record["method"], "config": _upgrade_config(record["method"]["config"])}
    # What a finished run was trained at is in its record; this one goes on at the rate that it began with.
    rate = {"learning_rate": record["training"]["learning_rate"]}
    return {**record, "method": method, "request": {**rate, **record["request"]}}


def _with_former_defaults(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record that states the options of its method whose default has changed since 0.1.0."""
    from rankfold.presets import discover, recommend  # imports torch, which a refused command does without

    method = record["method"]
    options = dict(method["options"])
    preset = discover().get(method["name"])
    if preset is not None:
        options = {**preset.former_defaults, **options}
        if recommend(preset.name, options=options).targets != preset.targets:
            options = {"target_modules": preset.targets, **options}
    return {
        **record,
        "method": {**method, "options": options},
        "request": {**record["request"], "options": options},
    }


def _upgrade_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return an adapter's configuration whose router has a kind in place of a number of rounds."""
    router = config.get("router")
    if not isinstance(router, dict) or "kind" in router:
        return config
    values = cast("dict[str, Any]", router)
    if values.get("rounds", 1) == 1:
        values = {name: value for name, value in values.items() if name != "rounds"}
        return {**config, "router": {**values, "kind": "softmax"}}
    return {**config, "router": {**values, "kind": "recurrent"}}


def request_of_command(words: Sequence[str]) -> RunRequest:
    """Return the request that a command line of `rankfold train` repeats, as 0.1.0 wrote it.

    Raises:
        DataError: If it has an option that does not exist, or a value that is not possible.
    """
    values = _values_of(words)
    try:
        return TypeAdapter(RunRequest).validate_python(values, strict=False)
    except ValidationError as error:
        raise _unreadable(words, str(explain_fault(RunRequest, error))) from error


def _values_of(words: Sequence[str]) -> dict[str, Any]:
    """Return the values of a command line by field; plain options as the texts they are."""
    fields = fields_of(RunRequest)
    names = {flag_of(name, field): name for name, field in fields.items()}
    values: dict[str, Any] = {}
    remaining_words = iter(words[2:])
    for flag in remaining_words:
        if flag == "--reducer":
            values.setdefault("reducer", {})
            continue
        if flag not in names:
            raise _unreadable(words, f"there is no option {flag}")
        name = names[flag]
        kind = value_type(fields[name])
        if kind is dict:
            values.setdefault(name, {}).update(_setting(words, flag, remaining_words))
        else:
            values[name] = True if kind is bool else next(remaining_words, "")
    return values


def _setting(words: Sequence[str], flag: str, remaining_words: Iterator[str]) -> dict[str, Any]:
    """Return the option by name that follows a flag, as in `--set r=8`."""
    key, _, text = next(remaining_words, "").partition("=")
    try:
        return {key: json.loads(text)}
    except ValueError as error:
        raise _unreadable(words, f"{flag} {key}={text} is no JSON") from error


def _unreadable(words: Sequence[str], reason: str) -> DataError:
    command, reason = " ".join(words), " ".join(reason.split()).rstrip(".")
    return DataError(
        f"cannot read the command '{command}' ({reason}); the version of rankfold that wrote it can."
    )
