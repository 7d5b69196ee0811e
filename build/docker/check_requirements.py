"""Whether the installed packages are those that a distribution asks for; says which are not, and ends with 1.

``python3 check_requirements.py DISTRIBUTION``. Packages that were installed with --no-deps are not checked by pip.
"""

from __future__ import annotations

import sys
from importlib import metadata

from packaging.requirements import Requirement


def faults(distribution: str) -> list[str]:
    """What is missing or of another version; extras are not looked at."""
    found = []
    for line in metadata.requires(distribution) or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(f"{requirement.name} is missing (expected: {requirement.specifier})")
            continue
        # The image's own builds of torch are pre-releases with local versions.
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name} does not fit (seen: {version}, expected: {requirement.specifier})")
    return found


if __name__ == "__main__":
    lines = faults(sys.argv[1])
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    sys.exit(1 if lines else 0)
