"""Sizes as users write them."""

import random

import pytest

from liveavatar.errors import RequestError
from liveavatar.request import MAX_AREA, MAX_SIDE, MIN_SIDE, SizeOption, parse_size


def message_of(text: str) -> str:
    with pytest.raises(RequestError) as caught:
        parse_size(text)
    message = str(caught.value)
    assert message.startswith("size: ")
    assert "\n" not in message
    assert len(message) < 200
    return message


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("688*368", (688, 368)),
        (" 704 * 384 ", (704, 384)),
        ("1280*720", (1280, 720)),
        ("64*64", (64, 64)),
        ("0688*0368", (688, 368)),
    ],
)
def test_width_star_height_is_read(text: str, size: tuple[int, int]) -> None:
    parsed = parse_size(text)
    assert (parsed.width, parsed.height) == size
    assert parsed.area == size[0] * size[1]


@pytest.mark.parametrize(
    "text", ["704x384", "704X384", "704×384", "704 384", "704,384", "704**384", "size=704x384px"]
)
def test_a_size_in_another_spelling_is_an_error_that_names_the_right_one(text: str) -> None:
    assert message_of(text).endswith("write 704*384")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "704",
        "704*",
        "a*b",
        "-704*384",
        "7.5*3.5*2",
        "1*2*3",
        "٧٠٤*٣٨٤",
        "1" * 10**6,
        "\n\0",
    ],
)
def test_what_is_no_size_is_one_line_that_names_the_right_spelling(text: str) -> None:
    assert "*" in message_of(text).partition("write ")[2]


@pytest.mark.parametrize("text", ["63*128", "128*63", "0*0", "4097*64", "999999*999999"])
def test_a_side_out_of_range_is_refused(text: str) -> None:
    message = message_of(text)
    assert str(MIN_SIDE) in message
    assert str(MAX_SIDE) in message


def test_more_than_the_largest_area_is_refused_and_the_largest_is_not() -> None:
    assert SizeOption(1280, 720).area == MAX_AREA
    assert str(MAX_AREA) in message_of("1280*721")
    assert str(MAX_AREA) in message_of("4096*4096")


def test_a_size_prints_as_it_is_parsed() -> None:
    generator = random.Random(2)
    for _ in range(200):
        size = SizeOption(generator.randint(64, 960), generator.randint(64, 960))
        assert parse_size(str(size)) == size
