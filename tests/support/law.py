"""The law of growth, as functions that return the violations they find.

They read source text only (`ast`), never run it, so they can be pointed at a
made-up package to prove that each rule can fail.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from r1lite.book.chapters import Book


class Package:
    """The modules of one source tree and what each of them imports.

    `home` says in which module the lazily offered names of the root live:
    {"R1Model": "r1lite.model"}.
    """

    def __init__(self, root: Path, home: dict[str, str] | None = None) -> None:
        self.name = root.name
        self.home = home or {}
        self.files = {_dotted(p, root): p for p in sorted(root.rglob("*.py"))}
        self.trees = {
            m: ast.parse(p.read_text(encoding="utf-8")) for m, p in self.files.items()
        }

    def imports(self, module: str, when_loaded: bool = False) -> set[str]:
        """Every own module that `module` imports, inside functions too.

        With `when_loaded`, only what importing `module` itself runs.
        """
        is_package = self.files[module].name == "__init__.py"
        here = module if is_package else module.rpartition(".")[0]
        tree = self.trees[module]
        found: set[str] = set()
        for dotted in _mentions(tree, here, self.name, inside=not when_loaded):
            found |= self.modules_behind(dotted)
        return found - {module}

    def modules_behind(self, dotted: str) -> set[str]:
        """The own modules that `dotted`, a module or a name in one, stands for.

        A name that a package re-exports stands for the package and for the
        module that defines it.
        """
        if dotted.partition(".")[0] != self.name:
            return set()
        loaded = dotted
        while loaded not in self.files:
            loaded = loaded.rpartition(".")[0]
        return {loaded, self.origin(dotted)[0]}

    def origin(self, dotted: str) -> tuple[str, str]:
        """Follow re-exports: (the module that defines it, the name there)."""
        parts = dotted.split(".")
        module, rest = parts[0], parts[1:]
        while rest:
            inner = f"{module}.{rest[0]}"
            exported = self._exported(module).get(rest[0])
            # Where a package exports a function named like its module, the
            # last word of a name is the function, a word before it the module.
            if exported and not (len(rest) > 1 and inner in self.files):
                return self.origin(".".join([exported, *rest[1:]]))
            if inner not in self.files:
                break
            module, rest = inner, rest[1:]
        return module, ".".join(rest)

    def _exported(self, module: str) -> dict[str, str]:
        """name -> dotted origin, for what the top level of a module imports."""
        found: dict[str, str] = {}
        if module == self.name:
            found = {name: f"{home}.{name}" for name, home in self.home.items()}
        for node in self.trees[module].body:
            if isinstance(node, ast.ImportFrom):
                base = _absolute(node, module)
                if base.partition(".")[0] == self.name and base != module:
                    found |= {
                        a.asname or a.name: f"{base}.{a.name}" for a in node.names
                    }
        return found


def unmapped(package: Package, book: Book) -> list[str]:
    """Modules that no chapter brings and that are not on top either."""
    return [
        f"{m}: in no chapter and not on top; add it to chapters.toml"
        for m in package.files
        if book.chapter_of(m) is None and not book.is_on_top(m)
    ]


def missing(package: Package, book: Book) -> list[str]:
    """Modules that a written chapter names but that do not exist."""
    return [
        f"chapter {c.number} names {m}, which does not exist"
        for c in book.chapters
        if c.written
        for m in c.modules
        if m not in package.files
    ]


def forward_imports(package: Package, book: Book) -> list[str]:
    """Modules that import from a later chapter or from the top."""
    found = []
    for module in package.files:
        if book.is_on_top(module):
            continue
        own = book.chapter_of(module)
        for target in sorted(package.imports(module)):
            theirs = book.chapter_of(target)
            if book.is_on_top(target):
                found.append(f"{module} imports {target}, which is on top of the book")
            elif own is not None and theirs is not None and theirs > own:
                found.append(f"{module} (ch {own}) imports {target} (ch {theirs})")
    return found


def cycles(package: Package) -> list[str]:
    """Import cycles, each as the path that closes it.

    An import inside a function or for type checkers only closes no cycle.
    """
    graph = {m: sorted(package.imports(m, when_loaded=True)) for m in package.files}
    done: set[str] = set()
    found = []

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
            return
        if module in done:
            return
        for target in graph[module]:
            visit(target, [*path, module])
        done.add(module)

    for module in graph:
        visit(module, [])
    return found


def notebook_tree(path: Path) -> ast.Module:
    """All code cells of a notebook as one syntax tree, magics left out."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = [
        line
        for cell in cells
        if cell["cell_type"] == "code"
        for line in "".join(cell["source"]).splitlines()
        if not line.lstrip().startswith(("%", "!"))
    ]
    return ast.parse("\n".join(lines))


def notebook_violations(
    path: Path, number: int, package: Package, book: Book, tour_names: Iterable[str]
) -> list[str]:
    """What chapter `number` uses though a later chapter brings it.

    The tour may use the public names, through the root of the package only.
    """
    tour = next(c.tour for c in book.chapters if c.number == number)
    free = {f"{package.name}.{name}" for name in tour_names} if tour else set()
    found = later_uses(notebook_tree(path), number, package, book, free)
    return [f"{path.name} {use}" for use in found]


def later_uses(
    tree: ast.AST,
    number: int,
    package: Package,
    book: Book,
    free: Iterable[str] = (),
) -> list[str]:
    """What text of chapter `number` uses of later chapters, or of the top."""
    found = set()
    for dotted in _mentions(tree, "", package.name):
        if ".".join(dotted.split(".")[:2]) in free:
            continue
        for module in package.modules_behind(dotted):
            theirs = book.chapter_of(module)
            if book.is_on_top(module):
                found.add(f"uses {module}, which is on top of the book")
            elif theirs is not None and theirs > number:
                found.add(f"(ch {number}) uses {module} (ch {theirs})")
    return sorted(found)


def shown_names(path: Path, package: Package) -> set[tuple[str, str]]:
    """(module, name) of everything whose source the notebook prints with `show`."""
    tree = notebook_tree(path)
    alias = dict(_aliases(tree))
    shown = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _chain(node.func) == "show":
            for argument in node.args:
                head, _, rest = _chain(argument).partition(".")
                dotted = ".".join(x for x in (alias.get(head, head), rest) if x)
                if dotted.partition(".")[0] == package.name:
                    module, name = package.origin(dotted)
                    shown.add((module, name.partition(".")[0]))
    return shown


def public_names(tree: ast.Module) -> set[str]:
    """Classes and functions that a module defines for others to use."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {n.name for n in tree.body if isinstance(n, kinds) and n.name[:1] != "_"}


def showing_violations(folder: Path, package: Package, book: Book) -> list[str]:
    """Public names of written chapters that are not shown in exactly one."""
    shown_in: dict[tuple[str, str], list[int]] = {}
    for chapter in book.chapters:
        if chapter.written:
            for key in shown_names(folder / chapter.notebook, package):
                shown_in.setdefault(key, []).append(chapter.number)
    found = []
    written = {c.number for c in book.chapters if c.written}
    for module, tree in package.trees.items():
        for name in sorted(public_names(tree)):
            places = shown_in.get((module, name), [])
            if len(places) > 1:
                found.append(f"{module}.{name} is shown in chapters {places}")
            elif not places and book.chapter_of(module) in written:
                own = book.chapter_of(module)
                found.append(f"{module}.{name} is not shown in chapter {own}")
    return found


def _dotted(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _mentions(
    tree: ast.AST, here: str, package: str, inside: bool = True
) -> Iterator[str]:
    """Every dotted own name that a tree imports or reaches from the root.

    inside: look into the bodies of functions too.
    """
    for node in ast.walk(tree) if inside else _outside_functions(tree):
        dotted: list[str] = []
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, here)
            dotted = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and _calls_import(node):
            text = node.args[0]
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                dotted = [text.value]
        elif isinstance(node, ast.Attribute):
            dotted = [_chain(node)]  # `import r1lite`, then `r1lite.R1Model`
        yield from (d for d in dotted if d.partition(".")[0] == package)


def _outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    later = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    for node in ast.iter_child_nodes(tree):
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in _chain(node.test)
        if not isinstance(node, later) and not for_types:
            yield node
            yield from _outside_functions(node)


def _absolute(node: ast.ImportFrom, here: str) -> str:
    if not node.level:
        return node.module or ""
    base = here.split(".")
    base = base[: len(base) - (node.level - 1)]
    return ".".join([*base, *([node.module] if node.module else [])])


def _calls_import(node: ast.Call) -> bool:
    name = _chain(node.func).rpartition(".")[2]
    return name in ("import_module", "__import__") and bool(node.args)


def _chain(node: ast.AST) -> str:
    """`a.b.c` of an attribute expression, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = _chain(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def _aliases(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                yield (a.asname, a.name) if a.asname else (a.name.split(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom):
            for a in node.names:
                yield a.asname or a.name, f"{node.module}.{a.name}"
