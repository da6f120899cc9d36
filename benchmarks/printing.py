"""How a benchmark says its results: each at once, so that one cut short leaves what it found."""

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

from liveavatar.errors import LiveAvatarError


def print_reports(
    reports: Iterable[dict[str, Any]], one_line: Callable[[dict[str, Any]], str], *, as_json: bool
) -> int:
    """Print reports as they are measured, in words or as JSON.

    Returns:
        Exit status: 0, or 2 where the settings were refused, which is said on standard error.
    """
    try:
        for report in reports:
            sys.stdout.write((json.dumps(report) if as_json else one_line(report)) + "\n")
            sys.stdout.flush()
    except LiveAvatarError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0
