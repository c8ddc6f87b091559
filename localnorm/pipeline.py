"""What a DVC stage depends on, and how a notebook reads its parameters.

DVC hashes files, so opening and saving a notebook, or mending a comment, would train everything again. The strip stage therefore
writes, for each notebook, one file with what it really runs: its code cells and every library module that it imports,
directly or not, without comments, docstrings and blank lines. A stage depends on that one file, so it depends
on exactly the library code that it uses, and no list has to be kept.
"""

import argparse
import ast
import io
import json
import subprocess
import sys
import tokenize
from pathlib import Path

import yaml

from localnorm import paths

__all__ = ["check", "closure", "load_params", "source_of", "strip", "strip_source"]

PACKAGE = Path(__file__).parent
STAGES = ("prepare", "train", "sweep", "statistics")  # the blocks that an experiment has in params.yaml


# ------------------------------------------------------------------------------------------------------------------ strip


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


def _module_file(name: str) -> Path | None:
    """The file of the library's module `name` ("data.prepare"), None where there is no such module."""
    path = PACKAGE.joinpath(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def _exports() -> dict[str, str]:
    """Public name -> module, as `localnorm/__init__.py` imports it."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    return {
        alias.asname or alias.name: node.module.removeprefix("localnorm.")
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _imports(text: str) -> set[str]:
    """Modules of the library that Python source `text` imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("localnorm.")]
            found.update(name.removeprefix("localnorm.") for name in names)
            if any(alias.name == "localnorm" for alias in node.names):
                found.update(_exports().values())
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "localnorm":
                exports = _exports()
                # a public name (the function `predict`) wins over the module of the same name, as in Python itself
                found.update(exports.get(alias.name, alias.name) for alias in node.names)
            elif node.module.startswith("localnorm."):
                module = node.module.removeprefix("localnorm.")
                found.add(module)
                found.update(f"{module}.{alias.name}" for alias in node.names)
    return {name for name in found if _module_file(name)}


def closure(text: str) -> list[Path]:
    """Files of the library that `text` imports, directly or through another module, in a stable order.

    `localnorm/__init__.py` only re-exports, so it does not count: the modules behind its names do.
    """
    seen: dict[str, Path] = {}
    waiting = sorted(_imports(text))
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen[name] = _module_file(name)
            waiting.extend(_imports(seen[name].read_text(encoding="utf-8")))
    return sorted(set(seen.values()))


def notebook_code(notebook: Path) -> str:
    """The code cells of a notebook as Python source; a cell that is tagged starts with its tags."""
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) + "\n" for cell in cells)


def source_of(notebook: Path) -> str:
    """All that running `notebook` executes of this project's own code, stripped."""
    code = notebook_code(notebook)
    parts = [f"# notebook {notebook.stem}\n{strip_source(code)}"]
    for file in closure(code):
        name = file.relative_to(PACKAGE).as_posix()
        parts.append(f"# localnorm/{name}\n{strip_source(file.read_text(encoding='utf-8'))}")
    return "".join(parts)


def strip(notebooks: Path, output: Path) -> list[Path]:
    """Write `output`/<name>.py for each notebook in the folder `notebooks`."""
    return [paths.write(output / f"{path.stem}.py", source_of(path)) for path in sorted(notebooks.glob("*.ipynb"))]


# ----------------------------------------------------------------------------------------------------------------- params


def load_params(experiment: str | None = None) -> dict:
    """params.yaml as a dictionary, or one experiment's block of it.

    Raises:
        ValueError: `experiment` has no block, or a block that is none of a stage's.
    """
    params = yaml.safe_load((paths.project() / "params.yaml").read_text(encoding="utf-8"))
    if experiment is None:
        return params
    known = [name for name in params["experiments"] if name in params]
    if experiment not in known:
        raise ValueError(
            f"unknown experiment {experiment!r}; params.yaml has {', '.join(known)}: "
            f"add the name to its list `experiments` and a block {experiment}:"
        )
    block = params[experiment]
    if set(block) != set(STAGES):
        raise ValueError(
            f"params.yaml: the block {experiment} must have exactly {', '.join(STAGES)}; it has {', '.join(block)}"
        )
    return block


def check() -> None:
    """Check every block of params.yaml before any work starts, and prepare DVC for a folder without git.

    Raises:
        ValueError: an experiment without a block, an unknown key or a value that cannot work; names the experiment.
    """
    from localnorm.evaluate import SweepConfig  # here, since the strip stage is to start quickly
    from localnorm.train import TrainConfig

    for experiment in load_params()["experiments"]:
        block = load_params(experiment)
        try:
            TrainConfig.from_params(block["train"])
            SweepConfig.from_params(block["sweep"])
        except (ValueError, TypeError) as error:
            raise ValueError(f"params.yaml, {experiment}: {error}") from None
    if not (paths.project() / ".git").exists():  # an archive of the repository: DVC must be told
        subprocess.run(["dvc", "config", "--local", "core.no_scm", "true"], check=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m localnorm.pipeline", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("strip", help="write what each notebook runs to data/sources")
    commands.add_parser("check", help="check params.yaml before any work starts")
    command = parser.parse_args(arguments).command
    if command == "strip":
        strip(paths.project() / "notebooks", paths.project() / "data" / "sources")
        return
    try:
        check()
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
