"""The layers an adapter is on, in a few lines of text: types and sizes, and names with ranges of blocks.

A file that carries its layout can be folded without its base model.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise, takewhile

from rankfold.adapter.geometry import Conv2d, Embedding, Geometry, Linear, Matrices
from rankfold.errors import AdapterFileError
from rankfold.limits import MOST_LAYERS

Layout = dict[str, list[str]]
"""By type and sizes, such as "linear 384 -> 1536", the names, such as "layer.{0-5}.dense"."""

_PLAIN = re.compile(r"(linear|conv1d|embedding) ([1-9]\d{0,7}) -> ([1-9]\d{0,7})")
_PARAMETER = re.compile(
    r"parameter ((?P<experts>[1-9]\d{0,5}) x )?(?P<inputs>[1-9]\d{0,7}) -> (?P<outputs>[1-9]\d{0,7})"
    r"(?P<transposed> transposed)?"
)
_CONVOLUTION = re.compile(
    r"conv2d (?P<inputs>[1-9]\d{0,7}) -> (?P<outputs>[1-9]\d{0,7})"
    r" kernel (?P<height>[1-9]\d{0,3})x(?P<width>[1-9]\d{0,3})"
    r"( groups (?P<groups>[1-9]\d{0,7}))?( dilation (?P<down>[1-9]\d{0,3})x(?P<across>[1-9]\d{0,3}))?"
    r"( padding (?P<padding>reflect|replicate|circular))?"
)
_BLOCKS = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


def layout_of(layers: Mapping[str, Geometry]) -> Layout:
    """Return the layout of layers by name."""
    names_by_layer: dict[str, list[str]] = {}
    for name, geometry in layers.items():
        names_by_layer.setdefault(describe_layer(geometry), []).append(name)
    return {layer: name_patterns(names) for layer, names in names_by_layer.items()}


def layers_in(layout: Mapping[str, Iterable[str]]) -> dict[str, Geometry]:
    """Return the layers of a layout, by name; the stride and the padding of convolutions are not in it.

    Raises:
        AdapterFileError: If the layout is damaged, names a layer twice, or more layers than any model has.
    """
    layers: dict[str, Geometry] = {}
    for sizes, patterns in layout.items():
        geometry = _geometry(sizes)
        for name in (name for pattern in patterns for name in _names(pattern)):
            if name in layers or len(layers) == MOST_LAYERS:
                raise _damage_error(
                    f"'{name}' twice" if name in layers else f"more than {MOST_LAYERS} layers"
                )
            layers[name] = geometry
    return layers


def describe_layer(geometry: Geometry) -> str:
    """Return a layer's type and sizes, as a layout has them."""
    match geometry:
        case Linear(transposed=transposed):
            layer_type = "conv1d" if transposed else "linear"
            return f"{layer_type} {geometry.in_features} -> {geometry.out_features}"
        case Matrices(experts=experts, transposed=transposed):
            stack = "" if experts is None else f"{experts} x "
            order = " transposed" if transposed else ""
            return f"parameter {stack}{geometry.in_features} -> {geometry.out_features}{order}"
        case Conv2d():
            height, width = geometry.kernel_size
            terms = [f"conv2d {geometry.in_channels} -> {geometry.out_features} kernel {height}x{width}"]
            terms += [f"groups {geometry.groups}"] if geometry.groups > 1 else []
            down, across = geometry.dilation
            terms += [f"dilation {down}x{across}"] if (down, across) != (1, 1) else []
            terms += [f"padding {geometry.padding_mode}"] if geometry.padding_mode != "zeros" else []
            return " ".join(terms)
        case _:
            return f"embedding {geometry.in_features} -> {geometry.out_features}"


def _geometry(sizes: str) -> Geometry:
    if plain := _PLAIN.fullmatch(sizes):
        layer_type, inputs, outputs = plain[1], int(plain[2]), int(plain[3])
        if layer_type == "embedding":
            return Embedding(inputs, outputs)
        return Linear(inputs, outputs, transposed=layer_type == "conv1d")
    if parameter := _PARAMETER.fullmatch(sizes):
        return Matrices(
            int(parameter["inputs"]),
            int(parameter["outputs"]),
            None if parameter["experts"] is None else int(parameter["experts"]),
            transposed=parameter["transposed"] is not None,
        )
    if convolution := _CONVOLUTION.fullmatch(sizes):
        return _convolution(sizes, convolution)
    raise _damage_error(f"'{sizes}'")


def _convolution(sizes: str, read: re.Match[str]) -> Conv2d:
    inputs, outputs, height, width, groups, down, across = (
        int(read[part] or 1) for part in ("inputs", "outputs", "height", "width", "groups", "down", "across")
    )
    if inputs % groups or outputs % groups:
        raise _damage_error(f"'{sizes}'")
    return Conv2d(
        inputs,
        outputs,
        (height, width),
        stride=(1, 1),
        padding=(0, 0),
        dilation=(down, across),
        groups=groups,
        padding_mode=read["padding"] or "zeros",
        pad_widths=(),
    )


def name_patterns(names: Iterable[str]) -> list[str]:
    """Return names with those that differ in the number of their block alone drawn together."""
    blocks: dict[tuple[str, str], list[int]] = {}
    patterns: list[tuple[str, str] | str] = []
    for name in names:
        parts = name.split(".")
        position = next((index for index, part in enumerate(parts) if _is_number(part)), None)
        if position is None:
            patterns.append(name)
            continue
        ends = ".".join(parts[:position]), ".".join(parts[position + 1 :])
        if ends not in blocks:
            patterns.append(ends)
        blocks.setdefault(ends, []).append(int(parts[position]))
    return [
        pattern
        if isinstance(pattern, str)
        else ".".join(filter(None, (pattern[0], _ranges(blocks[pattern]), pattern[1])))
        for pattern in patterns
    ]


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdecimal() and str(int(part)) == part


def _ranges(numbers: list[int]) -> str:
    """Return numbers as "3", or as "{0-2,5}"."""
    numbers = sorted(numbers)
    if len(numbers) == 1:
        return str(numbers[0])
    steps = [index for index, (first, second) in enumerate(pairwise(numbers), 1) if second != first + 1]
    bounds = zip([0, *steps], [*steps, len(numbers)], strict=True)
    runs = [(numbers[begin], numbers[end - 1]) for begin, end in bounds]
    return "{" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) + "}"


def _names(pattern: str) -> Iterator[str]:
    braces = _BLOCKS.search(pattern)
    if braces is None:
        yield pattern
        return
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    for run in braces[1].split(","):
        read = _RANGE.fullmatch(run)
        if read is None:
            raise _damage_error(f"'{pattern}'")
        for number in range(int(read[1]), int(read[2] or read[1]) + 1):
            yield f"{before}{number}{after}"


def _damage_error(content: str) -> AdapterFileError:
    return AdapterFileError(f"the adapter's list of layers names {content}; restore its adapter_config.json.")


def block_of(path: str) -> tuple[str, ...]:
    """Return where the block of a layer is, the parts of the layer's path up to the first number.

    Empty if the path has no number: the layer is in no block. Without its last part, the number, this is the
    stack of blocks, of which an encoder-decoder has two.
    """
    parts = path.split(".")
    before = list(takewhile(lambda part: not part.isdecimal(), parts))
    return () if len(before) == len(parts) else tuple(parts[: len(before) + 1])


def common_depth(names: Iterable[str]) -> int:
    """Return how many modules around them these modules have in common."""
    parents = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, parents))


def tower_of(path: str, towers: Iterable[str]) -> str:
    """Return the innermost of some towers, given by their paths, that a layer is in; empty if in none."""
    around = (tower for tower in towers if path.startswith(f"{tower}."))
    return max(around, key=len, default="")


PARAMETERS = "target_parameters"
"""In the path of a parameter's adapter, between the module that has the parameter and its name there."""


def module_path(name: str, geometry: Geometry) -> str:
    """Return the path of the module that carries the adapter of a layer, or of a parameter, of this name."""
    return parameter_path(name) if isinstance(geometry, Matrices) else name


def parameter_path(name: str) -> str:
    """Return the path of the module that carries the adapter of a parameter of this name."""
    owner, _, leaf = name.rpartition(".")
    return f"{owner}.{PARAMETERS}.{leaf}"


def layer_name(path: str) -> str:
    """Return the name of the layer, or the parameter, whose adapter a module of this path carries."""
    return path.replace(f".{PARAMETERS}.", ".")
