"""What is proposed for a measured imbalance, and properties that any proposal has."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from liveavatar.config import SamplingConfig
from liveavatar.errors import ConfigError
from liveavatar.plan.__main__ import main
from liveavatar.plan.layout import GIB, Machine, plan_layout
from liveavatar.plan.shapes import Network
from liveavatar.plan.tuning import LEAST_FRAMES, Measured, advise, predict

CARDS = Machine(4, int(22.15 * GIB))
NETWORK = Network()


def measured(stages: float = 0.95, media: float = 0.2, **changed: object) -> Measured:
    """18 minutes of three stages and a media rank; the busy shares are the question."""
    sampling = SamplingConfig(infer_frames=48, num_clip=50)
    base = Measured((640, 384), 2400, sampling, 1080.0, CARDS, (stages,) * 3, media)
    return replace(base, **changed)  # type: ignore[arg-type]


def test_full_stages_and_an_idle_fourth_card_get_shorter_clips_and_more_of_them() -> None:
    advice = advise(NETWORK, measured())
    assert advice.best is not None
    sampling = advice.best.sampling
    assert sampling.infer_frames < 48
    assert sampling.num_clip > 50
    assert sampling.infer_frames * sampling.num_clip >= 2400
    assert advice.best.plan.fits
    assert 0.85 < advice.best.seconds / 1080 < 0.95  # attention is the smaller part of the work
    assert "shorter clips" in advice.reason


def test_with_larger_cards_the_fourth_one_takes_layers_and_18_minutes_become_13() -> None:
    advice = advise(NETWORK, measured(machine=Machine(4, 40 * GIB), stages=0.97, media=0.05))
    assert advice.best is not None
    assert len(advice.best.plan.stages) == 4
    assert "its card can hold layers too" in advice.reason
    assert advice.best.seconds / 60 == pytest.approx(13, abs=0.5)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"stages": 0.5, "media": 0.96}, "the media rank is the busiest"),
        ({"stages": 0.2, "media": 0.1}, "no card is full"),
        ({"sampling": SamplingConfig(infer_frames=24, num_clip=100), "media": 0.6}, "add cards"),
    ],
)
def test_it_says_when_nothing_would_help(changed: dict[str, object], reason: str) -> None:
    advice = advise(NETWORK, measured(**changed))  # type: ignore[arg-type]
    assert advice.best is None
    assert reason in advice.reason


RANDOM = random.Random(5)
CASES = [
    (RANDOM.random(), RANDOM.random(), RANDOM.choice([24, 36, 48, 60]), 10 ** RANDOM.uniform(0, 5))
    for _ in range(10)
]


@pytest.mark.parametrize(("stage", "media", "frames", "seconds"), CASES)
def test_a_proposal_fits_covers_all_frames_and_is_never_slower(
    stage: float, media: float, frames: int, seconds: float
) -> None:
    sampling = SamplingConfig(infer_frames=frames, num_clip=50)
    case = measured(stage, media, sampling=sampling, seconds=seconds)
    best = advise(NETWORK, case).best
    if best is None:
        return
    assert best.plan.fits
    assert best.seconds < seconds
    assert LEAST_FRAMES <= best.sampling.infer_frames <= frames
    assert best.sampling.infer_frames * best.sampling.num_clip >= case.frames


@pytest.mark.parametrize(("stage", "media", "frames", "seconds"), CASES[:4])
def test_what_was_measured_is_predicted_and_twice_the_time_is_twice_the_prediction(
    stage: float, media: float, frames: int, seconds: float
) -> None:
    case = measured(stage, media, seconds=seconds)
    plan = plan_layout(NETWORK, case.size_hw, case.sampling, CARDS)
    # Stages as busy as each other cannot have equal work: 40 layers are 13, 13 and 14.
    predicted = predict(NETWORK, case, case.sampling, CARDS, plan)
    assert predicted == pytest.approx(seconds, rel=0.06)
    other = replace(case.sampling, infer_frames=frames)
    longer = replace(case, seconds=2 * seconds)
    one, two = (predict(NETWORK, each, other, CARDS, plan) for each in (case, longer))
    assert two == pytest.approx(2 * one)


def write_report(path: Path, **changed: object) -> Path:
    roles = ["stage 0", "stage 1", "stage 2", "media"]
    ranks = [
        {"role": role, "device": f"cuda:{index}", "busy_share": 0.2 if role == "media" else 0.95}
        for index, role in enumerate(roles)
    ]
    report = {"width": 384, "height": 640, "frames": 2400, "infer_frames": 48, "num_clip": 50}
    report |= {"sample_steps": 4, "seconds": 1080.0, "ranks": ranks} | changed
    path.write_text(json.dumps(report))
    return path


def test_the_command_prints_options_to_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = write_report(tmp_path / "report.json")
    assert main(["--tune", str(report)]) == 0
    text = capsys.readouterr().out
    assert "busy: stage 0 95%, stage 1 95%, stage 2 95%, media 20%" in text
    assert "options: --infer_frames 24 --num_clip 100 --num_gpus_dit" in text
    assert "not measured" in text
    assert main(["--tune", str(report), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["helps"]
    assert record["proposal"]["infer_frames"] * record["proposal"]["num_clip"] >= 2400


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ranks": []}, "measure a longer one"),
        ({"ranks": None}, "is no report"),
        ({"seconds": 0}, "above 0"),
        ({"frames": "many"}, "is no whole report"),
        ({"ranks": [{"role": "media", "device": "cpu", "busy_share": 1}]}, "one media rank"),
    ],
)
def test_a_report_that_cannot_be_used_is_refused(
    tmp_path: Path, changed: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--tune", str(write_report(tmp_path / "r.json", **changed))]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    with pytest.raises(ConfigError, match="busy shares"):
        measured(stages=1.5)
