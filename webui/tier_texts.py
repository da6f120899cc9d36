"""What a choice of tier says: size, memory against what is there, speed as measured here."""

from __future__ import annotations

from collections.abc import Sequence

from webui.offers import CUSTOM
from webui.schemas import TierView

LANGUAGES = ("en", "zh")

_NAMES = {
    "en": {"fast": "Fast", "balanced": "Balanced", "high": "High", "custom": "Custom"},
    "zh": {"fast": "快速", "balanced": "均衡", "high": "高清", "custom": "自定义"},
}
_WORDS = {
    "en": {
        "memory": "{used:.1f} of {there:.1f} GiB",
        "first": "first frame {seconds:.1f} s",
        "fps": "{fps:.0f} fps",
        "unmeasured": "not timed yet",
        "no": "does not fit: {used:.1f} of {there:.1f} GiB",
        "custom": "size and settings of your own",
    },
    "zh": {
        "memory": "内存 {used:.1f} / {there:.1f} GiB",
        "first": "首帧 {seconds:.1f} 秒",
        "fps": "{fps:.0f} 帧/秒",
        "unmeasured": "速度尚未测得",
        "no": "放不下：需 {used:.1f}，仅 {there:.1f} GiB",
        "custom": "自行设定尺寸与参数",
    },
}


def tier_choices(
    tiers: Sequence[TierView], language: str, *, custom: bool
) -> list[tuple[str, str]]:
    """Labels and values for a dropdown; a label has two lines, its name and what it costs.

    Args:
        tiers: what the server offers.
        language: one of `LANGUAGES`.
        custom: whether any size may be asked for, too.
    """
    choices = [(_label(tier, language), tier.name) for tier in tiers]
    if custom:
        choices.append((f"{_NAMES[language][CUSTOM]}\n{_WORDS[language]['custom']}", CUSTOM))
    return choices


def _label(tier: TierView, language: str) -> str:
    words = _WORDS[language]
    parts = []
    if tier.memory_gib is not None and tier.available_gib is not None:
        text = words["memory" if tier.fits else "no"]
        parts.append(text.format(used=tier.memory_gib, there=tier.available_gib))
    if tier.fits:
        parts += _speed(tier, words)
    name = f"{_NAMES[language].get(tier.name, tier.name)} · {tier.size.replace('*', '×')}"
    return "\n".join((name, " · ".join(parts)))


def _speed(tier: TierView, words: dict[str, str]) -> list[str]:
    if tier.fps is None:
        return [words["unmeasured"]]
    said = [words["fps"].format(fps=tier.fps)]
    if tier.first_frame_s is not None:
        said.insert(0, words["first"].format(seconds=tier.first_frame_s))
    return said
