"""Recorded values from inside a forward, against ours at the same places."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from liveavatar.model.audio_injection import BlockAudio
from liveavatar.model.denoiser import Denoiser, Item
from liveavatar.model.transformer import TimeTable
from liveavatar.parity.fixture import Check, Fixture, skipped


class Taps:
    """Collects our counterparts of `taps.safetensors`, by name without the `nN.sS.` prefix.

    Args:
        fixture: a dit_full folder; without the file there is nothing to compare.
        denoiser: the job under test.
        time: its time table.
        text_LD: its embedded prompt.
    """

    def __init__(
        self, fixture: Fixture, denoiser: Denoiser, time: TimeTable, text_LD: Tensor
    ) -> None:
        self.fixture = fixture
        self.denoiser = denoiser
        self.time = time
        self.text_LD = text_LD
        there = (fixture.path / "taps.safetensors").exists()
        self.recorded = fixture.outputs("taps.safetensors") if there else {}
        self.ours: dict[str, Tensor] = {}

    @contextmanager
    def recording(self, item: Item, audio: BlockAudio) -> Iterator[None]:
        """Record the forward of `item` made inside, if the fixture has taps of it."""
        prefix = f"n{item.block_index}.s{item.step}."
        if not any(name.startswith(prefix) for name in self.recorded):
            yield
            return
        with ExitStack() as hooks:
            for number, layer in zip(
                self.denoiser.transformer.layer_range, self.denoiser.transformer.stack, strict=True
            ):
                self._tap_layer(f"{prefix}block{number}", layer, layer.audio, hooks)
            yield
        frames = audio.global_FD.shape[0]
        rows = [*[item.step] * frames, *[-1] * frames]
        self.ours[f"{prefix}time_projection.out"] = self.time.layers_S6D[rows].flatten(1)
        self.ours[f"{prefix}head.e"] = self.time.head_SD[[item.step] * frames]
        self.ours[f"{prefix}text_embedding.out"] = self.text_LD[None]
        self.ours[f"{prefix}audio_global"] = audio.global_FD[None, :, None]
        self.ours[f"{prefix}audio_local"] = audio.local_FKD[None]

    def checks(self) -> Iterator[Check]:
        """Compare all recorded taps."""
        for name, recorded in self.recorded.items():
            if name in self.ours:
                yield self.fixture.compare(f"tap {name}", self.ours[name], recorded)
            else:
                yield skipped(f"{self.fixture.name}/tap {name}", "no rule for this tensor")

    def _tap_layer(
        self, name: str, layer: nn.Module, injection: nn.Module | None, hooks: ExitStack
    ) -> None:
        def before(_: nn.Module, args: tuple[Any, ...]) -> None:
            self.ours[f"{name}.in"] = args[0][None]

        def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
            key = "out" if injection is None else "out_after_audio"
            self.ours[f"{name}.{key}"] = output[None]

        def before_injection(_: nn.Module, args: tuple[Any, ...]) -> None:
            self.ours[f"{name}.out"] = args[0][None]

        hooks.callback(layer.register_forward_pre_hook(before).remove)
        hooks.callback(layer.register_forward_hook(after).remove)
        if injection is not None:
            hooks.callback(injection.register_forward_pre_hook(before_injection).remove)
