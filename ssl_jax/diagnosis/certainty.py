"""How sure a state is, what would settle it, and by which step.

A state is sure where the run's end will bear it out, as far as any run that was looked at shows:

* something happened that does not come back: a number that is not finite, projections that are all
  exactly zero; or
* the run has ended; or
* the state has lasted long beside what is still to come (LASTING), and over the recent part of that
  stretch (half of it for MOVED) nothing it rests on moved, fell, or came near the end of its alarm.

A stretch by itself proves nothing: a mean direction that decay removes in 20 000 steps stands still
over the first 250.
"""

from typing import NamedTuple

import numpy as np

from ssl_jax.diagnosis.course import Course
from ssl_jax.diagnosis.facts import COLLAPSED
from ssl_jax.diagnosis.rows import HELD, LINE, ONE, POINT, THIN
from ssl_jax.diagnosis.signs import RECENT, ROWS, TREND, Signs, recent_rows, trend

# The steps to come may be at most so many times those for which the state has lasted. Evidence for
# this and MOVED: 195 small runs and the replication's BYOL at full scale (benchmarks/doctor.py),
# the verdict at each of their rows against the one at the end. results/doctor/verdicts.json has how
# often the doctor was sure with 2 and 2: it was never contradicted. With LASTING 3 one of 13 080
# was, with MOVED 3 fifty of 12 031, both before DRIFT and the longer stretch for MOVED.
LASTING = 2.0
# The factor by which largest eigenvalue and spread may differ within the stretch's later half.
MOVED = 2.0
# The factor by which a significant trend has to change a quantity to count as a fall or a rise.
# Kendall's statistic has no size: on 60 rows that only jitter by 3 % it sometimes exceeds TREND.
DRIFT = 1.1
# Below this spread all projections are one to three digits: what moves there is rounding.
SAME = 1e-3
TINY = float(np.finfo(np.float64).tiny)


class Doubt(NamedTuple):
    """Why a state is not sure."""

    reason: str
    settles: str  # what has to be seen
    by: float  # the step by which it is


def certainty_of(state: str, course: Course, doubt: Doubt | None) -> tuple[str, str]:
    """Return how sure a state is, and what settles it.

    Args:
        state: the run's state; all numbers are finite.
        course: the run so far.
        doubt: why the state is "too early", else None.

    Returns:
        "sure", "likely" or "unsure", a colon and the reason; and what settles it by which step, ""
        where nothing is open.
    """
    if doubt:
        return f"unsure: {doubt.reason}", settled([doubt], course)
    if state == "divergence":
        reason = "finite so far, but far beyond what any run that learns has"
        end = course.facts.total_steps
        return f"likely: {reason}", settled([Doubt("", "nothing shrinks again", end)], course)
    level, reason, by = rows_that_show_it(state, course)
    open_ = [] if level == "sure" else [Doubt("", state_goes_on(state), by)]
    if not (over(course) or all_zero(course)):
        open_ += doubts(state, course)
    if not open_:
        return f"sure: {reason}", ""
    level = "likely" if level == "sure" else level
    also = "; ".join(doubt.reason for doubt in open_ if doubt.reason)
    return f"{level}: {reason}{', but ' * bool(also)}{also}", settled(open_, course)


def rows_that_show_it(state: str, course: Course) -> tuple[str, str, float]:
    """Return how sure the rows alone make a state, why, and by which step they make it surer."""
    signs, rows, lasts = course.signs, len(course), len(course) - course.turn
    # From here on the state has lasted for the recent part of the run.
    by = max(signs.step[course.turn] / (1 - RECENT), signs.step[-1] + spacing(signs))
    if state == "healthy":
        if signs.content[-1] < THIN or signs.rank[-1] < ONE[1]:
            rank, content = signs.rank[-1], signs.content[-1]
            reason = f"effective rank {rank:.1f}, beside the mean {content:.1f}, is little"
            return "unsure", reason, newest(course)
        if course.turn and lasts < recent_rows(rows):
            return "likely", "it showed trouble a short while ago", by
        return "sure", "no sign of collapse", 0
    if lasts < ROWS:
        return "unsure", f"only the last {lasts} rows show it", by
    if lasts < RECENT * rows:
        return "likely", f"the last {lasts} of {rows} rows show it", by
    return "sure", f"{lasts} of {rows} rows, all up to the last, show it", 0


def doubts(state: str, course: Course) -> list[Doubt]:
    """Return what keeps a state from being sure while the run goes on, none where nothing does."""
    signs, step, total = course.signs, course.signs.step[-1], course.facts.total_steps
    rows = min(recent_rows(len(course)), len(course) - course.same)
    part = Signs(*(column[-rows:] for column in signs[:-1]), start=signs.start)
    lasted = step - (signs.step[course.same] if course.same else 0)
    found = []
    if total - step > LASTING * lasted:
        by = step + (total - step - LASTING * lasted) / (1 + LASTING)
        reason = f"{lasted:.0f} steps are few beside the {total - step:.0f} to come"
        found.append(Doubt(reason, state_goes_on(state), by))
    if rows < 2 * ROWS:
        by = step + (2 * ROWS - rows) * spacing(signs)
        reason = f"{2 * ROWS} rows have to show this very state"
        found.append(Doubt(reason, state_goes_on(state), by))
    if state == "healthy":
        if part.content.min() < THIN:
            little = f"beside the mean the effective rank was {part.content.min():.1f}"
            found.append(newer(course, f"it stays over {THIN:g}", little))
        return found
    if not clear(state, part):
        found.append(newer(course, "the signs pass their alarms by more", "it is a close thing"))
    if drifts(1 / np.maximum(part.top, TINY)):
        found.append(falls(part, course))
    if drifts(part.rank) or drifts(spread_of(part)):
        found.append(newer(course, "variety grows no more", "variety grows"))
    # A slow swing moves little within a third of the run; the stretch that vouches is longer.
    half = max(rows, (len(course) - course.same) // 2)
    found += moves(Signs(*(column[-half:] for column in signs[:-1]), start=signs.start), course)
    return found


def clear(state: str, part: Signs) -> bool:
    """Return whether all rows pass the threshold at which the state's alarm would begin anew."""
    few = (part.content < LINE[0]).all() or (part.rank < ONE[0]).all()
    if state == "complete collapse":
        return bool((part.mean > POINT[0]).all())
    if state == "rank-one explosion":
        return bool(few and (part.top > HELD[0]).all())
    return bool(few and (part.top < HELD[0]).all())


def drifts(values: np.ndarray) -> bool:
    """Return whether values rise, beyond chance and by more than DRIFT."""
    first, last = ends(values)
    return trend(values) > TREND and last > DRIFT * first


def ends(values: np.ndarray) -> tuple[float, float]:
    """Return the medians of the first and of the last ROWS values."""
    return float(np.median(values[:ROWS])), float(np.median(values[-ROWS:]))


def spread_of(part: Signs) -> np.ndarray:
    """Return the spread of the projections, at least SAME, by the share of their mean, (T,)."""
    return np.maximum(np.sqrt(np.maximum(1 - part.mean, 0)), SAME)


def falls(part: Signs, course: Course) -> Doubt:
    """Return the doubt that a falling largest eigenvalue raises, with the step at which it is gone.

    It is gone below HELD[1] of that at the start, at the rate of the part.
    """
    (first, last), (begin, end) = ends(part.top), ends(part.step)
    rate = np.log(first / max(last, TINY)) / (end - begin)
    step = part.step[-1]
    gone = end + np.log(last / HELD[1]) / rate if last > HELD[1] else step
    reason = "the largest eigenvalue falls"
    if step < gone < course.facts.total_steps:
        seen = f"the largest eigenvalue is then not below {HELD[1]:g} of its start"
        return Doubt(reason, seen, max(gone, newest(course)))
    return newer(course, "the largest eigenvalue falls no more", reason)


def moves(part: Signs, course: Course) -> list[Doubt]:
    """Return a doubt for each of largest eigenvalue and spread that changed by more than MOVED."""
    values = {
        "the largest eigenvalue": np.maximum(part.top, TINY),
        "the spread": spread_of(part),
    }
    found = []
    for name, value in values.items():
        factor = value.max() / value.min()
        if factor > MOVED:
            reason = f"{name} moved by a factor of {factor:.2g} lately"
            seen = f"{name} moves by less than {MOVED:g}"
            found.append(newer(course, seen, reason))
    return found


def newer(course: Course, settles: str, reason: str = "") -> Doubt:
    """Return a doubt that lasts until the recent part of the run holds only rows to come."""
    return Doubt(reason, settles, newest(course))


def newest(course: Course) -> float:
    """Return the step at which the recent part of the run will hold only rows to come."""
    signs = course.signs
    return signs.step[-1] + max(2 * ROWS * spacing(signs), signs.step[-1] * RECENT / (1 - RECENT))


def spacing(signs: Signs) -> float:
    """Return the steps between two rows."""
    return float(signs.step[-1] / len(signs.step))


def state_goes_on(state: str) -> str:
    """Return in words that a state is still there."""
    return "there is still no sign of collapse" if state == "healthy" else "the state is the same"


def settled(open_: list[Doubt], course: Course) -> str:
    """Return in words what settles all doubts, and the step by which it does."""
    end = course.facts.total_steps
    if over(course):
        return "only by a longer run"
    by = min(max(doubt.by for doubt in open_), end)
    last = ", where the run ends" if by >= end else ""
    seen = " and ".join(dict.fromkeys(doubt.settles for doubt in open_))
    return f"by step {np.ceil(by):.0f}{last}, if {seen}"


def over(course: Course) -> bool:
    """Return whether the run has ended: there is nothing to wait for."""
    return course.signs.step[-1] >= course.facts.total_steps


def all_zero(course: Course) -> bool:
    """Return whether all projections have been exactly zero for a while.

    No gradient leads out of that. Of six small runs that got there five stayed, and one came back
    to a spread of .007, which is the same collapse. A constant that is not zero is no end: four of
    six runs with a spread below 1e-4 had .5 to .8 again later (rate .3; Euclidean loss).
    """
    rows = course.signs.top[-2 * ROWS :]
    return course.kinds[-1] in COLLAPSED and len(rows) == 2 * ROWS and not rows.any()
