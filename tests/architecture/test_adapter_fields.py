"""A field of an adapter is declared twice, alike: in the spec and in the configuration."""

from dataclasses import fields

from rankfold import AdapterSpec, RankfoldConfig


def declared(kind) -> dict:
    """Return the type and the default of each field."""
    usual = kind()
    return {each.name: (each.type, getattr(usual, each.name)) for each in fields(kind)}


def test_configuration_has_every_field_of_an_adapter_with_its_type_and_default():
    spec, config = declared(AdapterSpec), declared(RankfoldConfig)
    spec["r"] = spec.pop("rank")
    spec["seed"] = (int | None, 0)  # a configuration may leave it to torch until the adapter is added
    assert {name: config.get(name) for name in spec} == spec
