"""The sample portraits, recordings and prompts are what their list says they are."""

import json
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.cartoon.cast import CAST, LIN, MAYA, RAVI, WALTER
from examples.cartoon.character import Character, Hair, Mouth, mouth_shape
from examples.cartoon.scene import draw_portrait
from examples.make_speech import LINES, MODEL_RATE_HZ, PEAK_LIMIT, finished

FOLDER = Path(__file__).parents[2] / "examples"
ENTRIES = json.loads((FOLDER / "examples.json").read_text(encoding="utf-8"))
NAMES = [entry["name"] for entry in ENTRIES]
SMALL = (96, 96)


def read_wave(name: str) -> np.ndarray:
    with wave.open(str(FOLDER / name)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        data = file.readframes(file.getnframes())
    return np.frombuffer(data, "<i2").astype(np.float64) / 32768


def mouth_area(person: Character, mouth: Mouth) -> np.ndarray:
    """Crop around the mouth of a person drawn large, in [0, 1]."""
    close = replace(person, mouth=mouth, at=(0.0, -0.1), scale=1.2, roll=0.0)
    picture = draw_portrait(close, (192, 192)) / 255
    row = int(96 + 96 * (1.2 * person.face.mouth_y - 0.1))
    return picture[row - 10 : row + 20, 80:112]


def test_every_person_of_the_cast_is_listed_and_has_a_line():
    assert len(set(NAMES)) == len(NAMES) >= 5
    assert [person.name for person in CAST] == NAMES
    assert [line.name for line in LINES] == NAMES


@pytest.mark.parametrize("entry", ENTRIES, ids=NAMES)
def test_entry_names_its_files_and_says_the_words(entry: dict[str, str]):
    assert set(entry) == {"name", "portrait", "speech", "prompt", "notes"}
    assert all(isinstance(value, str) and value for value in entry.values())
    assert (FOLDER / entry["portrait"]).is_file()
    assert (FOLDER / entry["speech"]).is_file()
    line = next(line for line in LINES if line.name == entry["name"])
    assert all(sentence in entry["notes"] for sentence in line.sentences)


@pytest.mark.parametrize("entry", ENTRIES, ids=NAMES)
def test_prompt_is_one_sentence_of_60_to_90_characters(entry: dict[str, str]):
    assert 60 <= len(entry["prompt"]) <= 90
    assert entry["prompt"].endswith(".")
    assert entry["prompt"] == entry["prompt"].strip()


def test_prompts_differ():
    assert len({entry["prompt"] for entry in ENTRIES}) == len(ENTRIES)


@pytest.mark.parametrize("person", CAST, ids=NAMES)
def test_portrait_is_a_light_png_of_the_stated_size(person: Character):
    path = FOLDER / f"{person.name}.png"
    assert path.stat().st_size < 200_000
    with Image.open(path) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", person.size)
        assert min(picture.size) >= 640


def test_portraits_come_in_square_and_tall_shapes():
    ratios = {round(person.size[0] / person.size[1], 4) for person in CAST}
    assert ratios == {1.0, 0.75, 0.5625}


def test_redrawing_a_portrait_gives_the_committed_file():
    with Image.open(FOLDER / "ravi.png") as picture:
        committed = np.asarray(picture).astype(np.int16)
    apart = abs(draw_portrait(RAVI).astype(np.int16) - committed)
    # One level for sines and powers that differ in the last bit between processors.
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3


@pytest.mark.parametrize("person", CAST, ids=NAMES)
def test_a_small_drawing_shows_the_committed_picture(person: Character):
    # Nothing depends on the size in pixels, so a small drawing is a scaled-down large one; the
    # share left is for lines thinner than a small pixel.
    width, height = person.size[0] // 6, person.size[1] // 6
    with Image.open(FOLDER / f"{person.name}.png") as picture:
        scaled = np.asarray(picture.resize((width, height), Image.Resampling.BOX)).astype(float)
    drawn = draw_portrait(person, (width, height))
    assert drawn.shape == (height, width, 3)
    assert abs(drawn - scaled).mean() < 3.0


def test_drawing_twice_gives_the_same_bytes():
    assert draw_portrait(LIN, SMALL).tobytes() == draw_portrait(LIN, SMALL).tobytes()


def test_portraits_are_distinct_people():
    small = [draw_portrait(person, SMALL).astype(float) for person in CAST]
    gaps = [abs(a - b).mean() for i, a in enumerate(small) for b in small[:i]]
    assert min(gaps) > 10


@pytest.mark.parametrize("style", ["bald", "short", "side part", "long", "bob", "bun", "curly"])
def test_each_hair_style_looks_different_from_a_bald_head(style: str):
    bald = draw_portrait(replace(WALTER, hair=Hair("bald", (0.2, 0.1, 0.1))), SMALL).astype(float)
    drawn = draw_portrait(replace(WALTER, hair=Hair(style, (0.2, 0.1, 0.1))), SMALL)  # type: ignore[arg-type]
    assert (abs(drawn - bald).mean() > 5) == (style != "bald")


def test_an_opening_mouth_grows_and_keeps_the_eyes():
    shut, half, wide = (mouth_area(MAYA, Mouth(open=share)) for share in (0.0, 0.5, 1.0))
    changed = [int((abs(area - shut).max(-1) > 0.15).sum()) for area in (half, wide)]
    assert 0 < changed[0] < changed[1]
    shut_dark, wide_dark = (int((area.max(-1) < 0.42).sum()) for area in (shut, wide))
    assert wide_dark > 2 * shut_dark
    eyes = [draw_portrait(replace(MAYA, mouth=Mouth(open=o)), SMALL)[36:46] for o in (0.0, 1.0)]
    # The chin sinks, so shading that follows the outline of the head may move by a hair.
    assert abs(eyes[0].astype(int) - eyes[1].astype(int)).mean() < 0.5


def test_mouth_lengths_follow_the_position_of_the_mouth():
    rest = mouth_shape(MAYA.face, Mouth(smile=0.0))
    assert rest.above + rest.below == 0
    assert mouth_shape(MAYA.face, Mouth(smile=0.0, open=1.0)).below == pytest.approx(0.0837)
    assert mouth_shape(MAYA.face, Mouth(smile=0.0, wide=1.0)).half_width > rest.half_width
    assert mouth_shape(MAYA.face, Mouth(smile=0.0, wide=-1.0)).half_width < rest.half_width
    assert mouth_shape(MAYA.face, Mouth(smile=1.0)).corner_lift > rest.corner_lift
    hiss = mouth_shape(MAYA.face, Mouth(smile=0.0, sibilant=1.0))
    assert hiss.lower_teeth > 0 < hiss.above


@pytest.mark.parametrize("person", CAST, ids=NAMES)
def test_a_face_finder_finds_the_face_in_the_middle(person: Character):
    cv2 = pytest.importorskip("cv2")
    picture = cv2.imread(str(FOLDER / f"{person.name}.png"), cv2.IMREAD_GRAYSCALE)
    finder = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_alt2.xml")
    factor = 320 / max(picture.shape)
    small = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    faces = finder.detectMultiScale(small, 1.1, 3)
    assert len(faces) == 1
    x, _, width, _ = faces[0]
    assert abs(x + width / 2 - small.shape[1] / 2) < 0.06 * small.shape[1]


@pytest.mark.parametrize("name", NAMES)
def test_recording_lasts_4_to_12_seconds(name: str):
    assert 4 <= len(read_wave(f"{name}.wav")) / 16_000 <= 12


@pytest.mark.parametrize("name", NAMES)
def test_recording_is_levelled_and_not_clipped(name: str):
    sound = read_wave(f"{name}.wav")
    assert abs(sound).max() <= PEAK_LIMIT
    frames = sound[: len(sound) // 320 * 320].reshape(-1, 320)
    power = (frames**2).mean(1)
    level = 10 * np.log10(power[power > power.max() * 10**-3.5].mean())
    assert level == pytest.approx(-20.0, abs=0.5)
    assert abs(sound[:1600]).max() < 1e-3 > abs(sound[-1600:]).max()


def test_recordings_stay_small():
    assert sum((FOLDER / f"{name}.wav").stat().st_size for name in NAMES) < 2_000_000


def test_levelling_tames_peaks_and_keeps_the_length():
    seconds = np.arange(2 * MODEL_RATE_HZ, dtype=np.float32) / MODEL_RATE_HZ
    tone = (0.02 * np.sin(2 * np.pi * 220 * seconds)).astype(np.float32)
    tone[MODEL_RATE_HZ : MODEL_RATE_HZ + 200] *= 40
    sound = finished(tone)
    assert abs(sound).max() <= PEAK_LIMIT
    assert len(sound) == pytest.approx(2 * 16_000 + 2 * 2_400, abs=2)
