"""A comparison's plots, from figures that are a little off."""

from medsa.comparison.plots import plots


def test_an_interval_that_rounding_put_beside_its_mean_is_drawn() -> None:
    dice = {"mean": 0.7, "low": 0.70001, "high": 0.69999}
    line = {"name": "one", "trained": 10, "ms": {"1": 2.0}, "summary": {"1": {"dice": dice}}}
    drawn = plots({"entrants": [line]})
    assert drawn.keys() == {"Dice over clicks", "Parameters against Dice", "Time against Dice"}
    assert all(png.startswith(b"\x89PNG") for png in drawn.values())
