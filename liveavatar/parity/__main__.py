"""Compare this implementation with recorded tensors of the reference network.

    python -m liveavatar.parity DIR [--json]

Every folder under DIR with a `fixture.json` is run; its `kind` says how. One line per tensor: name,
largest absolute error, tolerance, ok, FAIL or skip. Exit status: 0 when all agree, 1 on any
disagreement, 2 when a fixture cannot be run.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from liveavatar.errors import ConfigError, LiveAvatarError
from liveavatar.parity.end_to_end import check_e2e
from liveavatar.parity.fixture import Check, Fixture
from liveavatar.parity.networks import (
    check_audio,
    check_dit_block,
    check_dit_full,
    check_t5,
    check_vae,
    check_wav2vec,
)
from liveavatar.parity.numerics import (
    check_fp8_linear,
    check_image_prep,
    check_lora,
    check_motioner,
    check_rope,
    check_scheduler,
)

KINDS: dict[str, Callable[[Fixture], Iterator[Check]]] = {
    "audio": check_audio,
    "dit_block": check_dit_block,
    "dit_full": check_dit_full,
    "e2e": check_e2e,
    "fp8_linear": check_fp8_linear,
    "image_prep": check_image_prep,
    "lora": check_lora,
    "motioner": check_motioner,
    "rope": check_rope,
    "scheduler": check_scheduler,
    "t5": check_t5,
    "vae": check_vae,
    "wav2vec": check_wav2vec,
}


def find_fixtures(directory: Path) -> list[Fixture]:
    """Open every fixture folder at or under `directory`; ConfigError when there is none."""
    folders = sorted(path.parent for path in directory.rglob("fixture.json"))
    if not folders:
        raise ConfigError(f"{directory}: expected folders with a fixture.json, found none")
    return [Fixture(folder) for folder in folders]


def run_fixture(fixture: Fixture) -> Iterator[Check]:
    """Run one fixture; ConfigError when its kind is unknown or a part of it is missing."""
    if fixture.kind not in KINDS:
        known = ", ".join(sorted(KINDS))
        raise ConfigError(f"{fixture.path}: unknown kind {fixture.kind!r}; known are {known}")
    try:
        yield from KINDS[fixture.kind](fixture)
    except KeyError as error:
        raise ConfigError(f"{fixture.path}: the fixture lacks {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m liveavatar.parity", description="Compare with recorded reference tensors."
    )
    parser.add_argument("directory", type=Path, help="folder that holds fixture folders")
    parser.add_argument("--json", action="store_true", help="print one JSON array of all checks")
    options = parser.parse_args(arguments)
    checks: list[Check] = []
    broken = False
    try:
        fixtures = find_fixtures(options.directory)
    except LiveAvatarError as error:
        sys.stderr.write(f"parity: {error}\n")
        return 2
    for fixture in fixtures:
        try:
            for check in run_fixture(fixture):
                checks.append(check)
                if not options.json:
                    sys.stdout.write(_line(check))
        except LiveAvatarError as error:
            broken = True
            sys.stderr.write(f"parity: {error}\n")
    if options.json:
        json.dump([_plain(check) for check in checks], sys.stdout, indent=1, allow_nan=False)
        sys.stdout.write("\n")
    failed = sum(check.status == "FAIL" for check in checks)
    counts = {status: sum(c.status == status for c in checks) for status in ("ok", "FAIL", "skip")}
    sys.stderr.write(f"parity: {', '.join(f'{count} {s}' for s, count in counts.items())}\n")
    return 2 if broken else int(failed > 0)


def _plain(check: Check) -> dict[str, object]:
    """A check as strict JSON holds it: no number is null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(check).items()
    }


def _line(check: Check) -> str:
    error = f"max_abs={check.max_abs:.3g} rel_l2={check.rel_l2:.3g}"
    remark = f"  ({check.remark})" if check.remark else ""
    return f"{check.name}  {error}  [{check.tolerance}]  {check.status}{remark}\n"


if __name__ == "__main__":
    sys.exit(main())
