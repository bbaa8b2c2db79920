"""The architecture diagram: packages by layer and the imports between them, as an SVG file.

Layers are those of the import contract in `pyproject.toml`, arrows are the imports that the code has. Imports
that also follow from a chain of others are not drawn, nor those of the single modules at the bottom.
"""

import tomllib
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

import grimp
import networkx

DIAGRAM = Path(__file__).parent / "assets" / "architecture.svg"

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGE = _ROOT / "src" / "rankfold"
_WIDTH, _BOX, _HEIGHT, _GAP = 760, 132, 34, 36
_STYLE = """
text { font: 14px system-ui, sans-serif; text-anchor: middle; dominant-baseline: central; fill: #1b1f24 }
rect { fill: #e3f2ef; stroke: #2a7f72; stroke-width: 1.2 }
path { fill: none; stroke: #8a949e; stroke-width: 1.2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } rect { fill: #15332f; stroke: #4fb3a3 } path { stroke: #7d8590 }
}
"""


def package_layers() -> list[list[str]]:
    """Return the names of the packages and modules of each layer, from the top to the bottom."""
    contracts = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(each["layers"] for each in contracts if each.get("containers") == ["rankfold"])
    names = [[name.strip("() ") for name in layer.split("|")] for layer in layers]
    return [[name for name in layer if not name.startswith("_")] for layer in names]


def package_imports() -> set[tuple[str, str]]:
    """Return which package imports which, without imports that follow from a chain of others."""
    graph = grimp.build_graph("rankfold")
    names = {name for layer in package_layers() for name in layer if (_PACKAGE / name).is_dir()}
    rooms = networkx.DiGraph()
    for module in graph.modules:
        importer = module.split(".")[1] if "." in module else ""
        for target in graph.find_modules_directly_imported_by(module):
            imported = target.split(".")[1] if "." in target else ""
            if importer != imported and {importer, imported} <= names:
                rooms.add_edge(importer, imported)
    return set(networkx.transitive_reduction(rooms).edges)


def diagram() -> str:
    """Return the SVG text."""
    layers = package_layers()
    packages = [[name for name in layer if (_PACKAGE / name).is_dir()] for layer in layers]
    modules = [name for layer in layers for name in layer if not (_PACKAGE / name).is_dir()]
    positions = _positions([layer for layer in packages if layer])
    strip = max(y for _, y in positions.values()) + _HEIGHT / 2 + _GAP
    height = strip + _HEIGHT + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img">',
        "<title>Packages of rankfold by layer; an arrow points to the package that is imported</title>",
        f"<style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0 8 4 0 8" style="fill:#8a949e"/></marker></defs>',
        *_arrows(positions, package_imports()),
        *_boxes(positions),
        *_strip(modules, strip),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _positions(layers: list[list[str]]) -> dict[str, tuple[float, float]]:
    """Return the centre of each box."""
    positions: dict[str, tuple[float, float]] = {}
    for row, layer in enumerate(layers):
        y = row * (_HEIGHT + _GAP) + _HEIGHT / 2 + 4
        for column, name in enumerate(layer):
            positions[name] = (_WIDTH * (column + 1) / (len(layer) + 1), y)
    return positions


def _arrows(positions: Mapping[str, tuple[float, float]], edges: set[tuple[str, str]]) -> Iterator[str]:
    for importer, imported in sorted(edges):
        (x1, y1), (x2, y2) = positions[importer], positions[imported]
        top, bottom = y1 + _HEIGHT / 2, y2 - _HEIGHT / 2 - 1
        # An arrow that passes other layers swings out to the side, around their boxes.
        outwards = 1 if x1 + x2 >= _WIDTH else -1
        swing = 0.0 if bottom - top < 1.5 * _GAP else outwards * (_BOX * 0.9 + 12)
        middle = (top + bottom) / 2
        yield (
            f'<path d="M{x1:.0f} {top:.0f} C{x1 + swing:.0f} {middle:.0f} {x2 + swing:.0f} {middle:.0f} '
            f'{x2:.0f} {bottom:.0f}" marker-end="url(#tip)">'
            f"<title>{importer} imports {imported}</title></path>"
        )


def _boxes(positions: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    for name, (x, y) in positions.items():
        corner = f'x="{x - _BOX / 2:.0f}" y="{y - _HEIGHT / 2:.0f}"'
        yield f'<rect {corner} width="{_BOX}" height="{_HEIGHT}" rx="7"/>'
        yield f'<text x="{x:.0f}" y="{y:.0f}">{escape(name)}</text>'


def _strip(modules: list[str], top: float) -> Iterator[str]:
    """Yield the modules that every package may import, in one wide box."""
    left, width = 20, _WIDTH - 40
    yield f'<rect x="{left}" y="{top:.0f}" width="{width}" height="{_HEIGHT}" rx="7" stroke-dasharray="4 3"/>'
    names = escape(" · ".join(sorted(modules)))
    yield f'<text x="{_WIDTH / 2:.0f}" y="{top + _HEIGHT / 2:.0f}">imported by any: {names}</text>'
