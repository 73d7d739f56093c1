"""Print the figures of the house: how often a fact is repeated, and what code is like, measured from the sources.

    python benchmarks/house.py [--json]

The runtime (`mlx_ltx2`, `convert`) counts, tests do not. Code lines are those that hold a token; docstrings are prose.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import statistics
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PACKAGES = {"mlx_ltx2": ROOT / "mlx_ltx2", "mlx_ltx2_convert": ROOT / "convert"}
PLANNING = ("footprint.py", "memory.py", "pipelines/budget.py", "pipelines/needs.py", "pipelines/traced.py")
LINE, FUNCTION = 100, 60


@dataclass(frozen=True)
class Source:
    """One file of the runtime. module: dotted name."""

    path: Path
    module: str

    @cached_property
    def text(self) -> str:
        return self.path.read_text("utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def tokens(self) -> list[tokenize.TokenInfo]:
        return list(tokenize.generate_tokens(io.StringIO(self.text).readline))

    @cached_property
    def docstrings(self) -> set[int]:
        """Lines of docstrings, and of strings that explain the name above them."""
        texts = [n for n in ast.walk(self.tree) if isinstance(n, ast.Expr) and _text(n.value) is not None]
        return {line for n in texts for line in range(n.lineno, (n.end_lineno or n.lineno) + 1)}

    @cached_property
    def code_lines(self) -> int:
        silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        lines = {t.start[0] for t in self.tokens if t.type not in silent and t.type != tokenize.ENDMARKER}
        return len(lines - self.docstrings)

    @property
    def comments(self) -> int:
        """Comments that say something to a person, not to a tool."""
        found = [t.string for t in self.tokens if t.type == tokenize.COMMENT]
        return sum(not re.match(r"#\s*(noqa|type:|fmt:|pragma|ruff:)", text) for text in found)

    @cached_property
    def words(self) -> set[str]:
        """Identifiers, attributes, keywords and whole strings."""
        names = {t.string for t in self.tokens if t.type == tokenize.NAME}
        return names | {t for n in ast.walk(self.tree) if (t := _text(n)) is not None}


def sources() -> list[Source]:
    found = []
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found.append(Source(path, ".".join((package, *parts)).removesuffix(".__init__")))
    return found


def option_rooms(files: Iterable[Source]) -> list[int]:
    """For each field of a request: in how many files its name occurs."""
    from mlx_ltx2.pipelines.request import Request

    return [sum(field.name in file.words for file in files) for field in fields(Request)]


def pipeline_names(files: Iterable[Source]) -> tuple[int, int]:
    """Displays that list two pipelines or more, and comparisons with a pipeline's name."""
    from mlx_ltx2.pipelines.recipes import RECIPES

    lists = tests = 0
    for file in files:
        for node in ast.walk(file.tree):
            parts: list[ast.AST | None] = []
            if isinstance(node, ast.List | ast.Tuple | ast.Set):
                parts = list(node.elts)
            elif isinstance(node, ast.Dict):
                parts = list(node.keys)
            lists += sum(_text(part) in RECIPES for part in parts if part is not None) >= 2
            if isinstance(node, ast.Compare):
                tests += any(_text(part) in RECIPES for part in (node.left, *node.comparators))
    return lists, tests


def imports(file: Source, known: set[str]) -> set[str]:
    """Modules of the house that a file names, at the top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{name.name}" for name in node.names}
            found |= inner & known or {node.module}
    return (found & known) - {file.module}


def circles(files: list[Source]) -> list[set[str]]:
    """Groups of files that reach each other by imports."""
    known = {file.module for file in files}
    graph = {file.module: imports(file, known) for file in files}
    reach = {name: _reachable(name, graph) for name in graph}
    groups = {frozenset({m for m in reach[n] if n in reach[m]}) for n in graph if n in reach[n]}
    return [set(group) for group in groups]


def _reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += graph[name]
    return seen


def functions(files: Iterable[Source]) -> Iterator[tuple[str, int, int]]:
    """(where, lines, parameters) of every function."""
    for file in files:
        for node in ast.walk(file.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                a = node.args
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                yield f"{file.module}.{node.name}", lines, len(a.posonlyargs) + len(a.args) + len(a.kwonlyargs)


def opens_of_a_run() -> dict[str, int]:
    """Opens of config, index and weight files in one run of the demo's command, by file name."""
    code = (
        "import collections, json, sys; seen = collections.Counter(); "
        "sys.addaudithook(lambda event, args: event == 'open' and str(args[0]).endswith(('.json', '.safetensors')) "
        "and 'w' not in str(args[1]) and seen.update([str(args[0])])); "
        "from mlx_ltx2 import LTX2Pipeline; opened = lambda: LTX2Pipeline.from_pretrained('demo', prompt_cache=False); "
        "opened(); seen.clear(); p = opened(); "
        "p('a red circle', num_frames=9, height=64, width=64); print(json.dumps(seen))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    opens: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return {path: count for path, count in opens.items() if "/site-packages/" not in path}


def type_errors() -> int:
    """What `mypy --strict` finds."""
    command = [sys.executable, "-m", "mypy", "--strict"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return len(re.findall(r"^[^ ]+: error:", done.stdout, re.M))


def figures() -> dict[str, object]:
    files = sources()
    code = sum(file.code_lines for file in files)
    lines = [line for file in files for line in file.text.splitlines()]
    every = list(functions(files))
    rooms = option_rooms(files)
    lists, tests = pipeline_names(files)
    groups = circles(files)
    opens = opens_of_a_run()
    planning = [f for f in files if str(f.path.relative_to(PACKAGES["mlx_ltx2"].parent)).endswith(PLANNING)]
    anys = sum(t.string == "Any" for f in files for t in f.tokens if t.type == tokenize.NAME)
    by_name = sum(f.text.count("import_module(") for f in files)
    return {
        "code lines": code,
        "files that name an option, median and most": f"{statistics.median(rooms):g}, {max(rooms)}",
        "lists of pipelines": lists,
        "comparisons with a pipeline's name": tests,
        "lines of memory planning": sum(f.code_lines for f in planning),
        "opens of json and weight files in a run": sum(opens.values()),
        "most opens of one file": max(opens.values(), default=0),
        "circles of files": len(groups),
        "files in circles": ", ".join(sorted(name for group in groups for name in group)) or "none",
        "imports by a string": by_name,
        "Any per 1,000 code lines": round(1000 * anys / code, 1),
        "errors of mypy --strict": type_errors(),
        f"lines over {LINE} columns, %": round(100 * sum(len(line) > LINE for line in lines) / len(lines), 1),
        "comments per 100 code lines": round(100 * sum(f.comments for f in files) / code, 1),
        f"functions over {FUNCTION} lines": sum(length > FUNCTION for _, length, _ in every),
        "most parameters": max(count for _, _, count in every),
    }


def _text(node: ast.AST) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    found = figures()
    if parser.parse_args().json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:<48}{value}")


if __name__ == "__main__":
    main()
