"""Which code runs."""

from __future__ import annotations

import shutil
import subprocess

from experiments.run import cli

COMMIT = "commit"  # in the record of a run


def commit() -> str:
    """The commit of the checkout, short, with "+" where files differ from it; "" without a repository or git."""

    def git(*arguments: str) -> str:
        asked = ["git", "-C", str(cli.INSTALLED), *arguments]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()

    if shutil.which("git") is None:
        return ""
    return git("rev-parse", "--short", "HEAD") + "+" * bool(git("status", "--porcelain", "--untracked-files=no"))
