"""The model behind this server, and what each tier costs on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from liveavatar.config import SamplingConfig
from liveavatar.errors import RequestError
from liveavatar.jobs.store import JobStore
from liveavatar.media.portrait import fit_size
from liveavatar.plan.layout import GIB, LayoutPlan
from liveavatar.plan.tiers import Tier
from liveavatar.request import SizeOption
from webui.schemas import TierCost, TierDefaults, TierView
from webui.settings import ServerSettings

_TYPICAL_PORTRAIT_HW = (1920, 1080)

CUSTOM = "custom"

Planner = Callable[[tuple[int, int], SamplingConfig], LayoutPlan]


@dataclass(frozen=True)
class ServedModel:
    """What runs here.

    Attributes:
        name: for people.
        is_demo: small enough for a CPU.
        is_random: random weights: it shows noise.
        plan: memory of a video of (height, width) on this machine; None where nothing is planned.
    """

    name: str
    is_demo: bool = False
    is_random: bool = False
    plan: Planner | None = None


@dataclass(frozen=True)
class Choice:
    """What a form asks for beside its tier; None leaves the tier's value."""

    tier: str
    num_clip: int | None = None
    infer_frames: int | None = None
    sample_steps: int | None = None
    seed: int | None = None
    online_decode: bool | None = None
    size: SizeOption | None = None


class Offers:
    """The tiers of this server.

    Args:
        settings: what the operator offers.
        model: what runs here.
    """

    def __init__(self, settings: ServerSettings, model: ServedModel) -> None:
        self.model = model
        self._tiers = {tier.name: tier for tier in settings.tiers}
        self._custom = settings.features.custom_tier
        self._costs = {tier.name: self.cost(tier) for tier in settings.tiers}

    def resolve(self, choice: Choice) -> Tier:
        """Return the tier with what was asked for in its place.

        Raises:
            RequestError: the tier is not offered, or sizes are not for the user to choose.
            ConfigError: a value is out of range.
        """
        names = [*self._tiers, *([CUSTOM] if self._custom else [])]
        if choice.tier not in names:
            raise RequestError(f"tier: expected {' or '.join(names)}, got {choice.tier[:40]!r}")
        tier = self._tiers.get(choice.tier) or next(iter(self._tiers.values()))
        size = tier.size
        if choice.size is not None and choice.tier != CUSTOM and choice.size != size:
            raise RequestError(
                f'size: the tier {tier.name} has {size}; another size needs the tier "{CUSTOM}"'
            )
        if choice.tier == CUSTOM:
            if choice.size is None:
                raise RequestError(f'size: the tier "{CUSTOM}" needs one, such as 688*368')
            size = choice.size
        changed = {
            name: value
            for name, value in (
                ("num_clip", choice.num_clip),
                ("infer_frames", choice.infer_frames),
                ("num_steps", choice.sample_steps),
                ("seed", choice.seed),
                ("online_decode", choice.online_decode),
            )
            if value is not None
        }
        return Tier(choice.tier, size, replace(tier.sampling, **changed))  # type: ignore[arg-type]

    def require_fit(self, tier: Tier, size_hw: tuple[int, int]) -> None:
        """Raise RequestError when a video of this size does not fit into this machine."""
        if self.model.plan is not None:
            plan = self.model.plan(size_hw, tier.sampling)
            if not plan.fits:
                raise RequestError(f"tier: {tier.name} {plan.verdict}")

    def cost(self, tier: Tier, portrait_hw: tuple[int, int] = _TYPICAL_PORTRAIT_HW) -> TierCost:
        """What a video of this portrait costs; without one, of an upright picture."""
        if self.model.plan is None:
            return TierCost(fits=True, reason="", memory_gib=None, available_gib=None)
        plan = self.model.plan(fit_size(portrait_hw, tier.size.area), tier.sampling)
        return TierCost(
            fits=plan.fits,
            reason=plan.verdict,
            memory_gib=round(plan.chosen.largest / GIB, 2),
            available_gib=round(plan.machine.memory_bytes / GIB, 2),
        )

    def views(self, store: JobStore) -> list[TierView]:
        """All tiers for the page, with speeds measured lately."""
        return [self._view(tier, store) for tier in self._tiers.values()]

    def _view(self, tier: Tier, store: JobStore) -> TierView:
        speed = store.tier_speed(tier.name)
        return TierView(
            **self._costs[tier.name].model_dump(),
            name=tier.name,
            size=str(tier.size),
            width=tier.size.width,
            height=tier.size.height,
            first_frame_s=speed.first_frame_s,
            fps=speed.fps,
            defaults=TierDefaults(
                num_clip=tier.sampling.num_clip,
                infer_frames=tier.sampling.infer_frames,
                sample_steps=tier.sampling.num_steps,
                online_decode=tier.sampling.online_decode,
            ),
        )
