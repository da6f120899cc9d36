"""Fetch exactly the weights that are read here; goes on where it stopped, and checks what came.

    python -m liveavatar.download [--to ckpt] [--dry-run] [--only base|adapter] [--verify]

The base goes into `ckpt/Wan2.2-S2V-14B`, the adapter into `ckpt/LiveAvatar`, where doctor, scripts
and examples look for them. Sizes and SHA-256 are those the hub states for its files; every file
that was fetched is read once more and compared. Exit status: 0 when all is there, 1 when the hub
cannot be reached or a file is damaged (run it again: it goes on), 2 for what cannot work, such as a
disk that is too small.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from liveavatar.errors import CheckpointError, ConfigError, LiveAvatarError

GIB = 2**30
_SPARE_BYTES = GIB
_READ_BYTES = 2**22
_PAUSES_S = (1.0, 5.0, 20.0)  # after a transfer that broke off

EXIT_DONE, EXIT_UNFINISHED, EXIT_REFUSED = 0, 1, 2


@dataclass(frozen=True)
class Source:
    """A repository of the hub.

    Attributes:
        name: for --only.
        repository: owner and name.
        folder: where its files go, below --to.
        patterns: the files that are read here; the rest of the repository is not fetched.
    """

    name: str
    repository: str
    folder: str
    patterns: tuple[str, ...]


SOURCES = (
    Source(
        "base",
        "Wan-AI/Wan2.2-S2V-14B",
        "Wan2.2-S2V-14B",
        (
            "config.json",
            "diffusion_pytorch_model*.safetensors",
            "diffusion_pytorch_model.safetensors.index.json",
            "models_t5_umt5-xxl-enc-bf16.pth",
            "google/umt5-xxl/tokenizer.json",
            "wav2vec2-large-xlsr-53-english/config.json",
            "wav2vec2-large-xlsr-53-english/model.safetensors",
            "Wan2.1_VAE.pth",
        ),
    ),
    Source("adapter", "Quark-Vision/Live-Avatar", "LiveAvatar", ("*.safetensors",)),
)


@dataclass(frozen=True)
class Wanted:
    """One file.

    Attributes:
        repository, revision, name: where it lies on the hub; the revision is a commit.
        folder: of the repository here.
        num_bytes: its size.
        sha256: digest in hex; None for small files, of which the hub states none.
    """

    repository: str
    revision: str
    name: str
    folder: Path
    num_bytes: int
    sha256: str | None

    @property
    def path(self) -> Path:
        """Where it goes."""
        return self.folder / self.name

    @property
    def is_there(self) -> bool:
        """Whether a file of this size is there; its bytes are not read."""
        return self.path.is_file() and self.path.stat().st_size == self.num_bytes

    def check(self) -> None:
        """Compare the file with its digest.

        Raises:
            CheckpointError: it differs; the file is removed.
        """
        if self.sha256 is None:
            return
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while part := file.read(_READ_BYTES):
                digest.update(part)
        if digest.hexdigest() != self.sha256:
            self.path.unlink()
            raise CheckpointError(
                f"{self.path}: is damaged, its SHA-256 is not the hub's; it was removed: run the "
                "command again"
            )


def list_files(sources: Sequence[Source], target: Path, endpoint: str | None) -> list[Wanted]:
    """Ask the hub for the files.

    Raises:
        CheckpointError: a pattern matches no file of its repository.
        OSError: the hub is not reached, or refuses.
    """
    return [wanted for source in sources for wanted in _files_of(source, target, endpoint)]


def _files_of(source: Source, target: Path, endpoint: str | None) -> Iterator[Wanted]:
    info = HfApi(endpoint=endpoint).model_info(source.repository, files_metadata=True)
    siblings = info.siblings or []
    for pattern in source.patterns:
        # fnmatch lets a star cross folders; one that is meant for the top stays there.
        found = [
            file
            for file in siblings
            if fnmatch(file.rfilename, pattern) and file.rfilename.count("/") == pattern.count("/")
        ]
        if not found:
            raise CheckpointError(
                f"{source.repository}: expected a file {pattern}, there is none; look at the "
                "repository's page"
            )
        for file in found:
            yield Wanted(
                source.repository,
                info.sha or "main",
                file.rfilename,
                target / source.folder,
                file.size or 0,
                file.lfs.sha256 if file.lfs else None,
            )


def fetch(wanted: Wanted, endpoint: str | None) -> None:
    """Fetch one file, going on with a part that is there, and compare its digest.

    A transfer that breaks off is gone on with, a few times.

    Raises:
        CheckpointError: what came is damaged.
        OSError: the hub is not reached, or refuses.
    """
    for pause_s in (*_PAUSES_S, None):
        try:
            hf_hub_download(
                wanted.repository,
                wanted.name,
                revision=wanted.revision,
                local_dir=wanted.folder,
                endpoint=endpoint,
            )
            break
        except HfHubHTTPError:
            raise
        except OSError:  # what the client raises for every fault of the line
            if pause_s is None:
                raise
            time.sleep(pause_s)
    wanted.check()


def table(files: Sequence[Wanted], target: Path) -> str:
    """Every file with its size and whether it is there, then the sums."""
    rows = []
    for file in files:
        state, size = "there" if file.is_there else "missing", f"{file.num_bytes / GIB:.3f} GiB"
        rows.append(f"  {state:<8}{size:>13}  {file.path}")
    total = sum(file.num_bytes for file in files)
    free = shutil.disk_usage(_existing(target)).free
    rows.append(
        f"{len(files)} files, {total / GIB:.2f} GiB; to fetch {_missing(files) / GIB:.2f} GiB, "
        f"{free / GIB:.2f} GiB free at {target}"
    )
    return "\n".join(rows) + "\n"


def require_disk(files: Sequence[Wanted], target: Path) -> None:
    """Raise ConfigError unless what is missing finds room."""
    need, free = _missing(files) + _SPARE_BYTES, shutil.disk_usage(_existing(target)).free
    if need > free:
        raise ConfigError(
            f"disk: {need / GIB:.1f} GiB are needed at '{target}', {free / GIB:.1f} are free; make "
            "room or name another folder with --to"
        )


def _missing(files: Sequence[Wanted]) -> int:
    return sum(file.num_bytes for file in files if not file.is_there)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def build_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m liveavatar.download",
        description="Fetch the weights of the 14B network and its adapter.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--to", type=Path, default=Path("ckpt"), help="folder for both; default ckpt")
    add("--only", choices=[source.name for source in SOURCES], help="one of the two")
    add("--dry-run", action="store_true", help="say what would be fetched, and the room for it")
    add("--verify", action="store_true", help="read also what was there already and compare it")
    add("--endpoint", help="address of another hub with the same interface, such as a mirror")
    return parser


def run(options: argparse.Namespace) -> int:
    """Fetch what is missing; returns the exit status."""
    sources = [source for source in SOURCES if options.only in (None, source.name)]
    files = list_files(sources, options.to, options.endpoint)
    sys.stdout.write(table(files, options.to))
    if options.dry_run:
        return EXIT_DONE
    require_disk(files, options.to)
    for file in files:
        if not file.is_there:
            fetch(file, options.endpoint)
        elif options.verify:
            file.check()
    sys.stdout.write("all there; next: python -m liveavatar.doctor\n")
    return EXIT_DONE


def _said(error: Exception) -> str:
    """An error in one line; what the client says of a network goes on for many."""
    if isinstance(error, OSError) and error.errno is None and not isinstance(error, HfHubHTTPError):
        return (
            f"the hub cannot be reached ({type(error).__name__}); look at the network and its "
            "proxy, or name a mirror with --endpoint"
        )
    return " ".join(str(error).split())[:300]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    try:
        return run(build_parser().parse_args(arguments))
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_REFUSED
    except (LiveAvatarError, OSError) as error:
        sys.stderr.write(f"error: {_said(error)}; run the command again to go on\n")
        return EXIT_UNFINISHED


if __name__ == "__main__":
    sys.exit(main())
