"""What a DVC stage depends on: one file per notebook with the code that it really runs.

DVC hashes files, so opening and saving a notebook, or mending a comment, would train everything again. The strip stage therefore
writes, for each notebook, one file with what it really runs: its code cells and every library module that it imports,
directly or not, without comments, docstrings and blank lines. A stage depends on that one file, so it depends
on exactly the library code that it uses, and no list has to be kept.
"""

import ast
import io
import json
import tokenize
from functools import cache
from pathlib import Path

import yaml

from localnorm import paths

__all__ = ["closure", "current_source", "notebook_code", "parameters_of", "source_of", "strip", "strip_source"]

PACKAGE = Path(__file__).parent


@cache  # a module is in the source of many stages
def strip_source(text: str) -> str:
    """Python source without comments, docstrings, blank lines and trailing spaces.

    Works on the text's positions, not through `ast.unparse`, whose output differs between Python versions.
    """
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                for number in range(first.lineno - 1, first.end_lineno):
                    lines[number] = "\n"
                if len(node.body) == 1:  # a body of a docstring alone: keep the source valid
                    lines[first.lineno - 1] = " " * first.col_offset + "pass\n"
    for token in tokenize.generate_tokens(io.StringIO("".join(lines)).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column] + "\n"
    return "".join(line.rstrip() + "\n" for line in lines if line.strip())


def _file_of(module: str) -> Path | None:
    """The file of the library's module ("localnorm.data.prepare") or package ("localnorm.noise"); None where there is none."""
    place = PACKAGE.parent.joinpath(*module.split("."))
    files = [place.with_suffix(".py"), place / "__init__.py"]
    return next((file for file in files if file.is_file()), None)


@cache
def _import_statements(text: str) -> list[ast.Import | ast.ImportFrom]:
    """The imports in Python source, at its top or inside a function, but for those that only a type checker runs."""
    found, waiting = [], [ast.parse(text)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        only_types = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        waiting.extend(node.orelse if only_types else ast.iter_child_nodes(node))
    return found


def _exports(package: str) -> dict[str, str]:
    """Public name -> module that defines it, as the package's `__init__.py` imports them; empty for what is no package."""
    file = PACKAGE.parent.joinpath(*package.split("."), "__init__.py")
    tree = ast.parse(file.read_text(encoding="utf-8") if file.is_file() else "")
    return {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree)  # a lazy package names what it exports for type checkers alone
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _imports(text: str) -> set[str]:
    """Modules of the library that Python source imports, at its top or inside a function.

    `from localnorm.data import load` is the module that defines `load`, not the package, which imports more. A package that is imported as
    a whole (`from localnorm import noise`) counts with what its `__init__.py` imports at once.
    """
    found = set()
    for node in _import_statements(text):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.update({alias.name, *_exports(alias.name).values()})
        elif node.level == 0:
            exports = _exports(node.module)
            # a public name (the function `predict`) wins over a module of the same name, as in Python itself
            found.update(exports.get(alias.name, f"{node.module}.{alias.name}") for alias in node.names)
            if not exports:
                found.add(node.module)
    return {name for name in found if name.startswith("localnorm.") and _file_of(name)}


def closure(text: str) -> list[Path]:
    """Files of the library that Python source imports, directly or through another module, in a stable order."""
    seen: dict[str, Path] = {}
    waiting = sorted(_imports(text))
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen[name] = _file_of(name)
            waiting.extend(_imports(seen[name].read_text(encoding="utf-8")))
    return sorted(seen.values())


def notebook_code(notebook: Path) -> str:
    """The code cells of a notebook as Python source; a cell that is tagged starts with its tags."""
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) + "\n" for cell in cells)


def parameters_of(notebook: Path) -> list[str]:
    """The names that a notebook's parameters cell sets; none without such a cell."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    statements = [node for source in tagged for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return [target.id for node in statements for target in node.targets if isinstance(target, ast.Name)]


def source_of(notebook: Path) -> str:
    """All that running `notebook` executes of this project's own code, stripped.

    Raises:
        ValueError: it is no notebook, or its cells are not plain Python; names it and, of the cells, the line.
    """
    try:
        code = notebook_code(notebook)
        own = strip_source(code)
    except (SyntaxError, ValueError) as error:
        wrong = f"{error.msg}: {(error.text or '').strip()}" if isinstance(error, SyntaxError) else str(error)
        raise ValueError(
            f"notebooks/{notebook.name}: {wrong}; the code of a pipeline notebook is plain Python: no %magic, no !command"
        ) from None
    return f"# notebook {notebook.stem}\n{own}{_stripped(closure(code))}"


def source_of_module(module: str) -> str:
    """All of this project's own code that a module of the library runs, stripped, itself among it."""
    return _stripped(closure(f"import {module}"))


def _stripped(files: list[Path]) -> str:
    return "".join(
        f"# localnorm/{file.relative_to(PACKAGE).as_posix()}\n{strip_source(file.read_text(encoding='utf-8'))}"
        for file in files
    )


def current_source(stem: str) -> str:
    """What data/sources/<stem>.py holds once `strip` ran: the source of notebooks/<stem>.ipynb, or of the module that a stage runs.

    Example:
        >>> current_source("render-latex").startswith("# localnorm/")
        True
    """
    notebook = paths.project() / "notebooks" / f"{stem}.ipynb"
    return source_of(notebook) if notebook.is_file() else source_of_module(f"localnorm.{stem.replace('-', '.')}")


def strip() -> list[Path]:
    """Write data/sources/<name>.py for the names that the stage strip lists as its outs in dvc.yaml, and no other.

    A name is a notebook's, or a module's that a stage runs (render-latex is localnorm.render.latex). A notebook that no stage runs, a
    sketch of the user's own say, is not looked at.

    Raises:
        ValueError: see `source_of`.
    """
    project = paths.project()
    stages = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    outputs = [project / name for out in stages["strip"]["outs"] for name in out]
    return [paths.write(output, current_source(output.stem)) for output in outputs]
