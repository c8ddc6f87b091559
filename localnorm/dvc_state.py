"""What DVC knows of this folder, asked in this process: its files mended after a kill, and the stages that it would run.

`dvc status` reads dvc.yaml and dvc.lock anew for each stage that it is given, a second or two each. Here they are read once for all.
Nothing is written but by DVC itself; dvc.lock is never mended.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import yaml

from localnorm import paths

__all__ = ["repair", "set_up", "stale"]


def set_up() -> None:
    """Prepare DVC to start: for a folder without git, after a kill, on a machine that people share."""
    site = Path(os.environ.setdefault("DVC_SITE_CACHE_DIR", str(paths.project() / ".dvc" / "tmp" / "site")))
    site.mkdir(parents=True, exist_ok=True)
    site.chmod(0o700)  # DVC keeps pickles in it and opens what it makes itself to all users
    if not (paths.project() / ".git").exists():  # an archive of the repository: DVC must be told
        subprocess.run(["dvc", "config", "--local", "core.no_scm", "true"], check=True)
    for name in repair():
        print(
            f"{name} was cut off by a kill and is removed; finished stages come back from DVC's cache", file=sys.stderr
        )


def repair() -> list[str]:
    """Remove the files that a DVC killed in the middle of writing left unreadable, and return their names.

    DVC rewrites dvc.lock and its table of locks in place and does not start on half of one. Nothing is lost with them: what
    finished stages made comes back from DVC's cache without running again. Where another DVC is writing now, its files are left.
    """
    from dvc.lock import LockError, make_lock  # slow to import
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    project = paths.project()
    internal = project / ".dvc" / "tmp"
    if not internal.is_dir():  # DVC has not run here yet
        return []
    readers = {
        project / "dvc.lock": lambda text: COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(text)),
        internal / "rwlock": json.loads,
    }
    removed = []
    with ExitStack() as locks:
        try:
            for name in ("lock", "rwlock.lock"):
                locks.enter_context(make_lock(str(internal / name)))
        except LockError:
            return []
        for file, read in readers.items():
            try:
                read(file.read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
            except (Invalid, ValueError, yaml.YAMLError):
                file.unlink()
                removed.append(file.relative_to(project).as_posix())
    return removed


def stale(stages: Iterable[str]) -> set[str]:
    """Those of the stages that DVC would run: a dependency, an output, a parameter or the command is not what dvc.lock says.

    Args:
        stages: their names ("train@digits-small-ln-0").

    Returns:
        All of them where DVC cannot say, since a file is damaged or another DVC is at work: the command that runs them says why.
    """
    from dvc.exceptions import DvcException  # slow to import
    from dvc.repo import Repo

    wanted = set(stages)
    try:
        with Repo(str(paths.project())) as repo, repo.lock:
            known = {stage.name: stage for stage in repo.index.stages if getattr(stage, "name", None) in wanted}
            return {name for name in wanted if name not in known or known[name].status()}
    except DvcException:
        return wanted
