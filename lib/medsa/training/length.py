"""How long a run of training goes on: in epochs, in minutes or in steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Length:
    """When a run ends: after so many epochs, minutes of training, or steps."""

    epochs: int | None = None
    minutes: float | None = None
    steps: int | None = None

    def progress(self, epochs: float, seconds: float, steps: int = 0) -> float:
        """Which part (0..1) of the run is done after so many `epochs`, `seconds` and `steps`."""
        parts = [0.0]
        if self.epochs is not None:
            parts.append(epochs / self.epochs)
        if self.steps is not None:
            parts.append(steps / self.steps)
        if self.minutes is not None:
            parts.append(seconds / (60 * self.minutes))
        return min(1.0, max(parts))

    def split(self, share: float) -> tuple[Length, Length]:
        """Two lengths, the first with `share` of the minutes and about that of the rest, all above 0."""
        minutes = (None, None) if self.minutes is None else (share * self.minutes, (1 - share) * self.minutes)
        epochs, steps = _parts(self.epochs, share), _parts(self.steps, share)
        return Length(epochs[0], minutes[0], steps[0]), Length(epochs[1], minutes[1], steps[1])


def _parts(whole: int | None, share: float) -> tuple[int | None, int | None]:
    """A number in two, about `share` of it first, both at least 1."""
    first = None if whole is None else max(1, round(share * whole))
    return first, None if whole is None or first is None else max(1, whole - first)
