"""The operator's file: what it says holds, what it leaves out stays, the unknown is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from liveavatar.errors import ConfigError
from liveavatar.plan.tiers import DEMO_TIERS, TIERS
from webui.settings import ServerSettings, read_settings


def read(folder: Path, text: str, demo: bool = False) -> ServerSettings:
    path = folder / "server.toml"
    path.write_text(text, encoding="utf-8")
    return read_settings(path, ServerSettings(tiers=DEMO_TIERS if demo else TIERS))


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "") == ServerSettings()


def test_what_the_file_says_holds_and_the_rest_stays(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        """
        [limits]
        speech_seconds = 60
        jobs_per_owner = 1
        [features]
        custom_tier = true
        [tiers.fast]
        num_clip = 3
        online_decode = true
        [tiers.high]
        offered = false
        [tiers.tall]
        size = "256*640"
        sample_steps = 5
        """,
    )
    assert (settings.limits.speech_seconds, settings.limits.jobs_per_owner) == (60, 1)
    assert settings.limits.jobs_in_all == 50
    assert settings.limits.speech.max_seconds == 60
    assert settings.features.custom_tier
    assert settings.features.share
    assert [tier.name for tier in settings.tiers] == ["fast", "balanced", "tall"]
    fast, balanced, tall = settings.tiers
    assert (fast.sampling.num_clip, fast.sampling.online_decode) == (3, True)
    assert (str(fast.size), fast.sampling.infer_frames) == ("384*256", 32)
    assert balanced == TIERS[1]
    assert (str(tall.size), tall.sampling.num_steps) == ("256*640", 5)


def test_the_tiers_of_the_small_model_keep_their_names_and_are_quick() -> None:
    assert [tier.name for tier in DEMO_TIERS] == [tier.name for tier in TIERS]
    areas = [tier.size.area for tier in DEMO_TIERS]
    assert areas == sorted(areas)
    for tier in DEMO_TIERS:
        assert tier.size.width % 64 == tier.size.height % 64 == 0
        assert tier.size.area <= 256 * 256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "expected a readable TOML file"),
        ("[limit]\n", "limit: is not known; there are limits, features, tiers"),
        ("limits = 3", "limits: expected a table, got 3"),
        ("[limits]\nspeech = 3", "limits.speech: is not known; there are portrait_bytes, "),
        ("[limits]\njobs_in_all = 0", "limits.jobs_in_all: expected a whole number of at least 1"),
        ("[limits]\njobs_in_all = true", "limits.jobs_in_all: expected a whole number"),
        ("[limits]\njobs_in_all = 1.5", "limits.jobs_in_all: expected a whole number"),
        ("[limits]\nprompt_characters = 9999", "limits.prompt_characters: expected at most 2000"),
        ("[features]\nshare = 1", "features.share: expected true or false"),
        ("[tiers.fast]\nwidth = 3", "tiers.fast.width: is not known; there are size, num_clip"),
        ("[tiers.fast]\nsize = 3", "tiers.fast.size: expected a str"),
        ("[tiers.fast]\nnum_clip = true", "tiers.fast.num_clip: expected a int"),
        ('[tiers.fast]\nsize = "9x9"', "size: expected WIDTH*HEIGHT"),
        ("[tiers.fast]\ninfer_frames = 50", "tiers.fast.infer_frames: expected a multiple of 4"),
        ("[tiers.mine]\nnum_clip = 3", "tiers.mine: expected a size for a tier of your own"),
        ('[tiers.custom]\nsize = "64*64"', "tiers: expected a short plain name, got 'custom'"),
        ('[tiers."a b"]\nsize = "64*64"', "tiers: expected a short plain name"),
        (
            "".join(f"[tiers.{tier.name}]\noffered = false\n" for tier in TIERS),
            "tiers: expected at least one that is offered",
        ),
    ],
)
def test_what_is_not_known_is_refused_with_its_place(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("config '")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a readable TOML file"):
        read_settings(tmp_path / "none.toml", ServerSettings())
