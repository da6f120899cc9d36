"""An option that several commands have is called the same in all of them."""

from __future__ import annotations

import argparse

import pytest

from inference.options import build_parser as build_inference
from liveavatar.doctor.__main__ import build_parser as build_doctor
from webui.options import _build_parser as build_application


@pytest.mark.parametrize("build", [build_inference, build_doctor, build_application])
@pytest.mark.parametrize("name", ["--lora_path_dmd", "--lora"])
def test_the_adapter_goes_by_both_names_everywhere(build: object, name: str) -> None:
    assert callable(build)
    parser: argparse.ArgumentParser = build()
    required = ["--ckpt_dir", "x"] if "--ckpt_dir" in parser.format_help() else []
    options = vars(parser.parse_args([*required, name, "adapter"]))
    assert str(options.get("lora_path_dmd") or options.get("lora")) == "adapter"
