"""Train the whole demo in one time-boxed run: `python -m training.train_demo CORPUS OUT`.

Draws people who say the corpus, trains the autoencoder on them, then the rest on its latents. A
run that starts with an autoencoder or a transformer in OUT goes on from there; the autoencoder is
trained further only for `--more-autoencoder-seconds`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

import torch

from liveavatar.config import FRAMES_PER_BLOCK
from liveavatar.model.checkpoint import CONFIG
from liveavatar.model.vae import Encoder, VAEConfig
from training.avatar import Avatar
from training.checkpoint_writer import load_autoencoder, load_for_training
from training.demo_config import DEMO, DEMO_VAE, TRIAL
from training.drawing import Drawing, Drawn, Order
from training.pool import encode_pool
from training.train_autoencoder import AutoencoderTrainer, new_autoencoder
from training.train_avatar import AvatarTrainer, Run

_LOG = logging.getLogger("demo")
_SIZE = (128, 128)
"""Of the tier *fast*, whatever the portrait's shape; the autoencoder is trained at it."""
_LARGER = [(192, 192), (128, 256), (256, 256), (192, 320), (320, 192)]
"""Sizes, width first, that the other tiers make of square, upright and wide portraits."""


def build_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path, help="file of training.speech_corpus")
    parser.add_argument("out", type=Path, help="checkpoint folder")
    parser.add_argument("--seconds", type=float, default=500.0, help="of the whole run")
    parser.add_argument("--draw-seconds", type=float, default=60.0)
    parser.add_argument("--autoencoder-seconds", type=float, default=150.0)
    parser.add_argument("--more-autoencoder-seconds", type=float, default=0.0)
    parser.add_argument("--clips", type=int, default=3000, help="at most")
    parser.add_argument("--quick-workers", type=int, default=8, help="that draw on the GPU")
    parser.add_argument("--patient-workers", type=int, default=12, help="that draw on the host")
    parser.add_argument("--blocks", type=int, default=7, help="blocks of 12 frames per clip")
    parser.add_argument("--larger", type=int, default=10, help="of so many clips one has each "
                        "larger size and the others are 128x128; 0: all are")  # fmt: skip
    parser.add_argument("--batch", type=int, default=32, help="clips of 128x128 per step")
    parser.add_argument("--rollout-from", type=float, default=0.6)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--finish", action="store_true", help="let the rates fall from the start")
    parser.add_argument("--max-steps", type=int, default=10**9, help="per phase, for trials")
    parser.add_argument("--trial", action="store_true", help="tiny networks")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def trained_encoder(options: argparse.Namespace, drawn: Drawn, device: torch.device) -> Encoder:
    """Encoder of the autoencoder in the folder, trained first as far as the options ask for it."""
    halves = load_for_training(options.out, device)
    if halves is None:
        config = VAEConfig(dim=4, num_res_blocks=1) if options.trial else DEMO_VAE
        trainer = AutoencoderTrainer(new_autoencoder(config, device), drawn)
        _train_autoencoder(trainer, options, options.autoencoder_seconds)
    elif options.more_autoencoder_seconds > 0:
        trainer = AutoencoderTrainer(halves, drawn, still_share=0.0)
        trainer.report()
        _train_autoencoder(trainer, options, options.more_autoencoder_seconds)
    found = load_autoencoder(options.out, device)
    assert found is not None
    return found[0]


def _train_autoencoder(
    trainer: AutoencoderTrainer, options: argparse.Namespace, seconds: float
) -> None:
    trainer.run(seconds, options.max_steps)
    trainer.save(options.out)
    trainer.report()


def _sizes(larger: int) -> list[tuple[int, int]]:
    """Sizes of one clip after the other, the smallest first."""
    if larger <= 0:
        return [_SIZE]
    return [_SIZE] * max(1, larger - len(_LARGER)) + _LARGER


def main() -> int:
    """Run the command; returns its exit status."""
    started = time.monotonic()
    options = build_parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    order = Order(
        options.corpus, options.clips, options.blocks * FRAMES_PER_BLOCK, _sizes(options.larger),
        options.seed, options.quick_workers, options.patient_workers,
    )  # fmt: skip
    drawing = Drawing(order)
    encoder = trained_encoder(options, drawing.first(options.draw_seconds)[_SIZE], device)
    pools = [encode_pool(encoder, drawn) for drawn in drawing.close().values() if len(drawn.moods)]
    del drawing
    count = sum(len(pool.moods) for pool in pools)
    _LOG.info("encoded %d clips after %.0f s", count, time.monotonic() - started)
    avatar = Avatar(TRIAL if options.trial else DEMO)
    if (options.out / CONFIG).exists():
        avatar.load(options.out)
        _LOG.info("going on with the transformer in %s", options.out)
    left = options.seconds - (time.monotonic() - started)
    run = Run(
        left, options.batch, options.rollout_from, options.rate, options.finish, options.max_steps
    )
    AvatarTrainer(avatar.to(device), pools, run, options.seed).train(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
