"""Rounds start on time and when enough is new, once each, also those that a restart interrupted."""

import json
import stat
import time
from datetime import UTC, datetime, timedelta

import pytest

from medsa.errors import ConfigurationError, StoreUnavailableError
from medsa.server.schedule import Schedule, cron_of
from medsa.training.retrain import BusyError


class Site:
    """A datastore's labels, and the rounds that were started; a round uses all labels there are."""

    def __init__(self, folder):
        self.folder, self.labels, self.used, self.rounds, self.busy = folder, {}, {}, [], False
        self.down = None

    def states(self):
        if self.down:
            raise self.down
        return dict(self.labels)

    def unused(self, states):
        return [image for image, state in states.items() if self.used.get(image) != state]

    def start(self, why):
        if self.busy:
            raise BusyError("busy")
        self.rounds.append(why)
        self.schedule.began()

    def finish(self, well=True):
        if well:
            self.used = dict(self.labels)
        self.schedule.ended()

    def open(self, **options):
        self.schedule = Schedule(self.folder, self.states, self.unused, self.start, **options)
        return self.schedule

    def label(self, *images, state="1"):
        self.labels |= dict.fromkeys(images, state)


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path / "store")
    yield site
    site.schedule.end()


def wait_for(condition):
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends, "nothing happened"
        time.sleep(0.01)


def test_a_round_starts_when_enough_images_are_newly_labelled(site):
    schedule = site.open(after=3)
    site.label("a", "b")
    schedule.look()
    assert site.rounds == []
    site.label("c")
    schedule.look()
    assert site.rounds == ["3 images newly labelled"]


def test_a_label_counts_once_and_again_only_when_it_changes(site):
    schedule = site.open(after=2)
    site.label("a", "b")
    schedule.look()
    site.finish()
    schedule.look()
    assert len(site.rounds) == 1
    site.label("a", "b", state="2")
    schedule.look()
    assert len(site.rounds) == 2


def test_a_round_that_failed_is_not_begun_again_for_the_same_labels_but_on_time(site):
    schedule = site.open(after=1, cron="cron: 0 2 * * *")
    site.label("a")
    schedule.look()
    site.finish(well=False)
    schedule.look()
    assert len(site.rounds) == 1
    schedule._on_time()
    assert site.rounds[1:] == ["on time"]


def test_what_is_labelled_while_a_round_runs_waits_for_the_next(site):
    schedule = site.open(after=1)
    site.label("a")
    schedule.look()
    site.busy = True
    site.label("b")
    schedule.look()
    assert len(site.rounds) == 1
    site.busy = False
    site.finish()
    site.used = {"a": "1"}
    schedule.look()
    assert len(site.rounds) == 2


def test_nothing_new_means_no_round_at_its_time(site):
    schedule = site.open(cron="cron: 0 2 * * *")
    schedule._on_time()
    site.label("a")
    site.used = dict(site.labels)
    schedule._on_time()
    assert site.rounds == []


def test_a_store_that_is_away_stops_nothing(site, caplog):
    schedule = site.open(after=1)
    site.down = StoreUnavailableError("the store is down")
    schedule.look()
    schedule.look()
    assert caplog.text.count("the store is down") == 1
    site.down = ValueError("John Doe")
    schedule.look()
    assert "John Doe" not in caplog.text
    site.down = None
    site.label("a")
    schedule.look()
    assert len(site.rounds) == 1


def test_labels_are_looked_for_without_being_told_and_at_once_when_told(site):
    schedule = site.open(after=1, poll=3600)
    schedule.begin()
    wait_for(lambda: schedule.status()["next_run"] is None and schedule._scheduler.get_job("look"))
    site.label("a")
    schedule.look_now()
    wait_for(lambda: site.rounds)


def test_being_told_while_it_looks_is_not_forgotten(site):
    schedule = site.open(after=3, poll=3600)
    seen = site.states

    def slow():
        found = seen()
        site.label(str(len(found)))
        if len(found) < 3:
            schedule.look_now()
        return found

    site.states = slow
    schedule = site.open(after=3, poll=3600)
    schedule.begin()
    wait_for(lambda: site.rounds)


def test_a_missed_time_is_caught_up_with_once(site):
    site.label("a")
    site.folder.mkdir()
    missed = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    cron = "cron: 0 2 * * *"
    kept = {"running": False, "begun": [], "due": missed, "cron": str(cron_of(cron))}
    (site.folder / "schedule.json").write_text(json.dumps(kept))
    schedule = site.open(cron=cron)
    schedule.begin()
    wait_for(lambda: site.rounds)
    assert site.rounds == ["on time"]
    wait_for(lambda: datetime.fromisoformat(schedule.status()["next_run"]) > datetime.now(UTC))


def test_a_time_that_was_never_due_is_not_caught_up_with(site):
    site.label("a")
    first = site.open(cron="cron: 0 2 1 1 *")
    first.begin()
    first.end()
    second = site.open(cron="cron: 0 3 1 1 *")
    second.begin()
    wait_for(lambda: second.status()["labels"] == 1)
    assert site.rounds == []


def test_a_round_that_a_restart_interrupted_runs_again(site):
    site.label("a", "b")
    first = site.open(after=2)
    first.look()
    first.end()
    site.open(after=2).begin()
    wait_for(lambda: len(site.rounds) == 2)
    assert site.rounds[1] == "interrupted by a restart"
    site.finish()
    third = site.open(after=2)
    third.begin()
    wait_for(lambda: third.status()["labels"] == 2)
    assert len(site.rounds) == 2


def test_a_restart_before_the_interrupted_round_runs_again_does_not_forget_it(site):
    site.label("a")
    first = site.open(after=1)
    first.look()
    first.end()
    site.busy = True
    second = site.open(after=1)
    second.begin()
    wait_for(lambda: second.status()["labels"] == 1)
    second.end()
    site.busy = False
    site.open(after=1).begin()
    wait_for(lambda: len(site.rounds) == 2)


def test_what_is_kept_names_no_image_and_is_its_owners_alone(site):
    site.label("DOE^JANE")
    schedule = site.open(after=1)
    schedule.look()
    (path,) = site.folder.iterdir()
    assert "DOE" not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "spec", ["0 2 * * *", "cron:", "cron: 0 2 * *", "cron: 61 2 * * *", "daily", "cron: x"]
)
def test_what_is_no_schedule_is_said(spec):
    with pytest.raises(ConfigurationError, match="cron: 0 2"):
        cron_of(spec)


@pytest.mark.parametrize(
    ("field", "days"), [("0", [6]), ("7", [6]), ("1-5", [0, 1, 2, 3, 4]), ("6,0", [5, 6])]
)
def test_weekdays_are_crons(field, days):
    trigger, now = cron_of(f"cron: 0 2 * * {field}"), datetime(2026, 1, 1, 12, tzinfo=UTC)
    found = set()
    for _ in range(14):
        now = trigger.get_next_fire_time(None, now)
        found.add(now.weekday())
        now += timedelta(hours=1)
    assert sorted(found) == days


def test_a_cron_line_means_its_times():
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert cron_of("") is None
    found = cron_of("cron: 30 2 * * *").get_next_fire_time(None, now)
    assert (found.hour, found.minute) == (2, 30)
