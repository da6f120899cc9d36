"""The two decisions of `scripts/audit`.

python scripts/audit.py reachable      0 if the service that knows advisories answers with some
python scripts/audit.py judge REPORT   1 if a report of pip-audit names advisories without a reason
"""

import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

# A release of which advisories are known: who names none for it knows none at all.
PROBE = "https://pypi.org/pypi/gradio/4.25.0/json"
REASONS = Path(__file__).resolve().parents[1] / "constraints" / "advisories.toml"
TIMEOUT_S = 5.0
_ENTRY = re.compile(r'(\[(?P<package>[\w-]+)\]|(?P<id>[\w-]+) = "(?P<reason>[^"]+)")')


def is_reachable(url: str) -> bool:
    """Whether the index at `url` knows any advisory; says so where it does not."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            known = json.load(answer).get("vulnerabilities")
    except (OSError, ValueError) as error:
        _say(f"the advisories could not be asked for ({error}); nothing is known")
        return False
    if not known:
        _say("this index carries no advisories; nothing is known")
    return bool(known)


def reasons(path: Path) -> dict[str, dict[str, str]]:
    """By package and id, why an advisory does not matter here; ValueError for another form.

    Python 3.10 has no reader of TOML, and this runs before anything is installed.
    """
    found: dict[str, dict[str, str]] = {}
    package = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        entry = _ENTRY.fullmatch(line)
        if entry is None:
            raise ValueError(f'{path.name}: expected [package] or ID = "reason", got {line!r}')
        package = entry["package"] or package
        if entry["id"]:
            found.setdefault(package, {})[entry["id"]] = entry["reason"]
    return found


def findings(report: dict, known: dict[str, dict[str, str]]) -> Iterator[str]:
    """A line for each advisory of a report that no reason is known for."""
    for dependency in report["dependencies"]:
        allowed = known.get(dependency["name"].lower().replace("_", "-"), {})
        for advisory in dependency.get("vulns", []):
            if not allowed.keys() & {advisory["id"], *advisory["aliases"]}:
                fixed = ", ".join(advisory["fix_versions"]) or "no release"
                ids = " ".join([advisory["id"], *advisory["aliases"]])
                yield f"{dependency['name']} {dependency['version']}: {ids} (fixed in {fixed})"


def judge(report: Path) -> int:
    """Show what is found; the exit status."""
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
    except ValueError:  # it wrote none, and said why
        _say("the advisories could not be asked for; nothing is known")
        return 0
    lines = list(findings(content, reasons(REASONS)))
    for line in lines:
        _say(line)
    unknown = [one["name"] for one in content["dependencies"] if "skip_reason" in one]
    if unknown:
        _say(f"nothing is known about {', '.join(unknown)}")
    num_asked = len(content["dependencies"]) - len(unknown)
    _say(f"{num_asked} packages, {len(lines)} advisories without a reason in {REASONS.name}")
    return 1 if lines else 0


def _say(line: str) -> None:
    sys.stdout.write(f"audit: {line}\n")


def main(arguments: list[str]) -> int:
    """Run one of the two; returns its exit status."""
    if arguments == ["reachable"]:
        return 0 if is_reachable(PROBE) else 1
    if len(arguments) == 2 and arguments[0] == "judge":
        return judge(Path(arguments[1]))
    sys.stderr.write(__doc__ or "")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
