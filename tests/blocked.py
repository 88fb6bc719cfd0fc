"""Python in a process of its own in which some packages cannot be imported, as on a device."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection

__all__ = ["run_without"]

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


def run_without(packages: Collection[str], code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` with ``arguments`` in ``sys.argv``; importing one of ``packages`` fails as if it were missing."""
    source = BLOCK.format(packages=sorted(packages)) + code
    command = [sys.executable, "-c", source, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
