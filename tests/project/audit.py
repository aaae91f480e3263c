"""`make audit`: pip-audit over everything that is installed. What it could not look up is no good
news, and is said.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

OWN = "wsi-pipeline"
UNREACHABLE = (
    "nothing was found out: the service of advisories cannot be reached from here; run `make audit`"
    " where pypi.org can be"
)


def main(command: Sequence[str]) -> int:
    """Run pip-audit and judge its answer; exit codes: 0 nothing known, 1 known faults, 2 not found
    out.
    """
    answer = subprocess.run(
        [*command, "--format", "json", "--progress-spinner", "off"],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        packages: list[dict[str, Any]] = json.loads(answer.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = answer.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        print(f"pip-audit: {last[0][:200]}\n{UNREACHABLE}", file=sys.stderr)
        return 2
    faulty, skipped = sort_packages(packages)
    for line in faulty:
        print(line)
    looked_up = len(packages) - len(skipped)
    print(
        f"{looked_up} packages looked up, {len(faulty)} known faults, {len(skipped)} not looked up"
    )
    if looked_up == 0 and skipped:
        print(UNREACHABLE, file=sys.stderr)
        return 2
    if skipped:
        print(f"not looked up: {', '.join(skipped)}")
    return 1 if faulty else 0


def sort_packages(packages: Sequence[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """A line for every known fault, and the names of packages that could not be looked up; ours is
    on no index.
    """
    skipped = [
        package["name"]
        for package in packages
        if "skip_reason" in package and package["name"] != OWN
    ]
    faulty = [
        f"{package['name']} {package['version']}: {fault['id']}, mended in"
        f" {', '.join(fault.get('fix_versions', [])) or 'no version yet'}"
        for package in packages
        for fault in package.get("vulns", [])
    ]
    return faulty, skipped


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
