"""What a choice of tier says: size, memory against what is there, speed as measured here."""

from __future__ import annotations

from collections.abc import Sequence

from webui.schemas import TierView

LANGUAGES = ("en", "zh")

_NAMES = {
    "en": {"fast": "Fast", "balanced": "Balanced", "high": "High", "custom": "Custom size"},
    "zh": {"fast": "快速", "balanced": "均衡", "high": "高清", "custom": "自定义尺寸"},
}
_WORDS = {
    "en": {
        "memory": "{used:g} of {there:g} GiB",
        "first": "first frame {seconds:.1f} s",
        "fps": "{fps:.0f} fps",
        "unmeasured": "speed not measured yet",
        "no": "does not fit here",
    },
    "zh": {
        "memory": "显存 {used:g} / {there:g} GiB",
        "first": "首帧 {seconds:.1f} 秒",
        "fps": "{fps:.0f} 帧/秒",
        "unmeasured": "速度尚未测得",
        "no": "本机放不下",
    },
}


def tier_choices(tiers: Sequence[TierView], language: str) -> list[tuple[str, str]]:
    """Labels and values for a dropdown.

    Args:
        tiers: what the server offers.
        language: one of `LANGUAGES`.
    """
    return [(_label(tier, language), tier.name) for tier in tiers]


def _label(tier: TierView, language: str) -> str:
    words = _WORDS[language]
    parts = [tier.size.replace("*", "×")]
    if not tier.fits:
        parts.append(words["no"])
    if tier.memory_gib is not None and tier.available_gib is not None:
        parts.append(words["memory"].format(used=tier.memory_gib, there=tier.available_gib))
    if tier.fits:
        parts += _speed(tier, words)
    return f"{_NAMES[language].get(tier.name, tier.name)} · {' · '.join(parts)}"


def _speed(tier: TierView, words: dict[str, str]) -> list[str]:
    if tier.fps is None:
        return [words["unmeasured"]]
    said = [words["fps"].format(fps=tier.fps)]
    if tier.first_frame_s is not None:
        said.insert(0, words["first"].format(seconds=tier.first_frame_s))
    return said
