"""The scheduler: real threads of which exactly one runs at a time, and a seed that says which.

Each simulated thread (:class:`Task`) is a real one that waits at its gate, a lock, until it is handed the baton.
Whoever has the baton passes a *switch point* at each use of a lock, condition, thread or clock, in some runs at each
line of roomkit's too, and in a few at each access to an attribute or item; there the scheduler may hand the baton on.
Nothing else decides who runs: not the interpreter, not the machine, not the time. So a seed is a run.

Time is virtual. It jumps to the next timer when nobody can go on. In a *slow* run it may also jump while others can:
threads of a busy machine are late.
"""

from __future__ import annotations

import _thread
import dis
import heapq
import random
import sys
import traceback
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

#: Real seconds after which a run is said to hang: something in it waits for a real lock.
PATIENCE = 60.0
#: Switch points after which a run is said to go on for ever.
MOST_STEPS = 3_000_000
START = 1000.0
WALL_START = 1711569600.0

#: At each of these is a switch point: uses of the primitives; besides lines; besides accesses to attributes and items.
GRAINS = ("locks", "lines", "opcodes")


class SimulationOver(BaseException):
    """Ends every thread of a run that has failed. No Exception, so that nobody's error handling stops it."""


class Finding(Exception):
    """What was wrong with a run. ``kind``: the invariant's name."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Task:
    """A simulated thread."""

    __slots__ = (
        "body",
        "finished",
        "gate",
        "held",
        "index",
        "joiners",
        "name",
        "priority",
        "real_ident",
        "thread",
        "ticket",
        "timed_out",
        "waits_for",
    )

    def __init__(self, index: int, name: str, body: Callable[[], None], priority: float) -> None:
        self.index = index
        self.name = name
        self.body = body
        self.priority = priority
        self.gate = _thread.allocate_lock()
        self.gate.acquire()
        self.held: list[Any] = []  # locks that have a rank, in the order of taking
        self.joiners: list[Task] = []
        self.waits_for: str | None = None  # None: it can go on
        self.ticket = 0  # of its last wait: an older timer is nobody's
        self.timed_out = False
        self.finished = False
        self.real_ident: int | None = None
        self.thread: Any = self  # what threading.current_thread() gives


def _accesses(code: CodeType) -> frozenset[int]:
    """Where in the code something is read or written that threads may share.

    Not every instruction: the interpreter makes one of two as it warms up, and then how many there are depends on what
    the process did before.
    """
    found = _known_accesses.get(code)
    if found is None:
        found = frozenset(step.offset for step in dis.get_instructions(code) if step.opname in _SHARING)
        _known_accesses[code] = found
    return found


_known_accesses: dict[CodeType, frozenset[int]] = {}
_SHARING = frozenset(
    ("LOAD_ATTR", "STORE_ATTR", "DELETE_ATTR", "LOAD_METHOD", "BINARY_SUBSCR", "STORE_SUBSCR", "DELETE_SUBSCR")
)


class Strategy:
    """When to hand the baton on, and to whom. The seed picks one of two:

    * ``random``: every so many points, to any thread that can go on.
    * ``priorities`` (PCT, Burckhardt and others 2010): always the highest goes on; at few points, chosen at random, the
      one that runs becomes the lowest. Finds what needs one thread to stand still for long.
    """

    def __init__(self, rng: random.Random, grain: str) -> None:
        self.rng = rng
        self.grain = grain
        self.by_priority = rng.random() < 0.5
        low, high = {"locks": (3, 120), "lines": (20, 1500), "opcodes": (30, 2500)}[grain]
        if self.by_priority:
            low, high = low * 4, high * 4
        self.interval = low * (high / low) ** rng.random()
        self.slowness = 0.3 * rng.random() if rng.random() < 0.25 else 0.0

    def __str__(self) -> str:
        name = "priorities" if self.by_priority else "random"
        slow = f", late at {self.slowness:.0%} of the switches" if self.slowness else ""
        return f"{name}, {self.grain}, about {self.interval:.0f} points apart{slow}"

    def gap(self) -> int:
        return 1 + int(self.rng.expovariate(1 / self.interval))

    def take(self, ready: list[Task]) -> Task:
        if len(ready) == 1:
            return ready.pop()
        if self.by_priority:
            best = max(range(len(ready)), key=lambda at: ready[at].priority)
            return ready.pop(best)
        return ready.pop(int(self.rng.random() * len(ready)))


class Scheduler:
    """One run.

    Args:
        seed: with the code it decides everything.
        grain: one of ``GRAINS``, or None: the seed picks.
        traced: the code objects' files in which lines are switch points.
        record: keep a trace.
    """

    def __init__(
        self,
        seed: object,
        *,
        grain: str | None = None,
        traced: Callable[[CodeType], bool] = lambda code: False,
        record: bool = False,
    ) -> None:
        self.seed = seed
        self.rng = random.Random(f"schedule {seed}")  # of a text: the same whatever the hash seed
        picked = self.rng.choices(GRAINS, (85, 13, 2))[0]
        self.strategy = Strategy(self.rng, grain or picked)
        self._lines = self.strategy.grain != "locks"
        self._opcodes = self.strategy.grain == "opcodes"
        self._traced = traced
        self._known_code: dict[CodeType, bool] = {}
        self._accesses: dict[CodeType, frozenset[int]] = {}
        self.record = record
        self.trace: list[tuple[int, float, str, str, str]] = []
        self.now = START
        self.step = 0
        self.switches = 0
        self.digest = 0
        self.over = False
        self.finding: Finding | None = None
        self.world: Any = None  # whom the watchers tell (world.py)
        self.sockets: list[Any] = []  # all that were made, by number
        self.tasks: list[Task] = []
        self.current: Task = None  # type: ignore[assignment]
        self._ready: list[Task] = []
        self._timers: list[tuple[float, int, Task, int]] = []
        self._timer_count = 0
        self._asked = False
        self._next_switch = self.strategy.gap()
        self._done = _thread.allocate_lock()
        self._done.acquire()

    # A run, from outside.

    def run(self, main: Callable[[], None]) -> Finding | None:
        """Run ``main`` as the first simulated thread, and all that it starts, until it returns."""
        first = self.spawn("main", main)
        self._ready.clear()
        self.current = first
        self.start_real(first)
        first.gate.release()
        if not self._done.acquire(timeout=PATIENCE):
            frames = sys._current_frames()
            stack = "".join(traceback.format_stack(frames.get(self.current.real_ident or 0)))
            raise RuntimeError(
                f"seed {self.seed}: {self.current.name} keeps the baton; does it wait for a real lock?\n{stack}"
            )
        return self.finding

    def fail(self, kind: str, text: str) -> None:
        """End the run: an invariant does not hold."""
        if not self.over:
            self.finding = Finding(kind, f"{text} (step {self.step}, thread {self.current.name})")
            self.note("FOUND", str(self.finding))
            self.over = True
        raise SimulationOver

    # Threads.

    def spawn(self, name: str, body: Callable[[], None]) -> Task:
        """A new thread that can go on; the caller gives it a real one with :meth:`start_real`."""
        task = Task(len(self.tasks), name, body, self.rng.random())
        self.tasks.append(task)
        self._make_ready(task)
        return task

    def start_real(self, task: Task) -> None:
        _thread.start_new_thread(self._body, (task,))

    def _body(self, task: Task) -> None:
        task.real_ident = _thread.get_ident()
        task.gate.acquire()
        try:
            if not self.over:
                if self._lines:
                    sys.settrace(self._on_call)
                task.body()
        except SimulationOver:
            pass
        except BaseException as error:
            if not self.over:
                text = "".join(traceback.format_exception(type(error), error, error.__traceback__)[-12:])
                self.finding = Finding("a thread died", f"{task.name}: {text}")
                self.note("FOUND", str(self.finding))
                self.over = True
        finally:
            sys.settrace(None)
            self._end(task)

    def _end(self, task: Task) -> None:
        task.finished = True
        if task.held and not self.over:
            self.finding = Finding("a thread ended with a lock", f"{task.name}: {task.held}")
            self.over = True
        if task.index == 0:  # what is still there is the scenario's to find before it returns
            self.over = True
        if not self.over:
            for joiner in task.joiners:
                self.wake(joiner)
            self.note("end", "")
            try:
                chosen = self._pick()
            except SimulationOver:
                pass
            else:
                self._pass_on(chosen)
                return  # without another look: from here on it is the other's run
        if self.over:  # one after the other is let go, and ends
            for other in self.tasks:
                if not other.finished:
                    self._pass_on(other)
                    return
            self._done.release()

    # Switch points.

    def point(self, what: str, which: object = "") -> None:
        """The baton may change hands here."""
        if self.over:
            raise SimulationOver
        self.step += 1
        if self.record:
            self.note(what, str(which))
        if self.step >= self._next_switch:
            self.preempt()

    def note(self, what: str, which: str) -> None:
        """A line of the trace, which is not a switch point."""
        if self.record:
            name = f"{self.current.name}/{self.current.index}" if self.current is not None else ""
            self.trace.append((self.step, self.now, name, what, which))

    def preempt(self) -> None:
        if self.step > MOST_STEPS:
            self.fail("livelock", f"no end after {self.step} steps")
        self._next_switch = self.step + self.strategy.gap()
        me = self.current
        strategy = self.strategy
        if strategy.slowness and self._timers and strategy.rng.random() < strategy.slowness:
            self.now = max(self.now, min(self._timers[0][0], self.now + 1.0))
        self._fire_due()
        if not self._ready:
            return
        if strategy.by_priority:
            me.priority = strategy.rng.random() * min(task.priority for task in self._ready)
        self._ready.append(me)
        chosen = strategy.take(self._ready)
        if chosen is not me:
            self._hand_over(me, chosen)

    def _on_call(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        known = self._known_code.get(code)
        if known is None:
            known = self._known_code[code] = self._traced(code)
            if known and self._opcodes:
                self._accesses[code] = _accesses(code)
        if not known:
            return None
        if self._opcodes:
            frame.f_trace_opcodes = True
        return self._on_line

    def _on_line(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line" or (event == "opcode" and frame.f_lasti in self._accesses[frame.f_code]):
            if self.over:
                return None
            self.step += 1
            if self.step >= self._next_switch:
                if self.record:
                    code = frame.f_code
                    name = frame.f_globals.get("__name__", "?")
                    self.note(event, f"{name}:{frame.f_lineno} {code.co_name}")
                self.preempt()
        return self._on_line

    def clock(self) -> float:
        """Virtual monotonic seconds. A microsecond passes, so that no two readings are the same."""
        self.point("clock")
        self.now += 1e-6
        return self.now

    def wall(self) -> float:
        """Virtual Unix seconds."""
        return self.now - START + WALL_START

    def sleep(self, seconds: float) -> None:
        self.point("sleep", f"{seconds:.3f}")
        if seconds > 0:
            self.block("sleep", seconds)

    def block(self, why: str, timeout: float | None = None) -> bool:
        """Wait until :meth:`wake` or for ``timeout`` virtual seconds; False: it was the time."""
        if self.over:
            raise SimulationOver
        me = self.current
        me.ticket += 1
        me.waits_for = why
        me.timed_out = False
        if timeout is not None:
            self._timer_count += 1
            heapq.heappush(self._timers, (self.now + timeout, self._timer_count, me, me.ticket))
        if self.record:
            self.note("waits", why if timeout is None else f"{why}, at most {timeout:.3f} s")
        chosen = self._pick()
        if chosen is not me:
            self._hand_over(me, chosen)
        if self.record:
            self.note("goes on", "(time)" if me.timed_out else "")
        return not me.timed_out

    def wake(self, task: Task) -> None:
        """Let a thread that waits go on. Not a switch point."""
        if task.waits_for is not None:
            self._make_ready(task)

    def _make_ready(self, task: Task) -> None:
        task.waits_for = None
        self._ready.append(task)
        if self.strategy.by_priority and self.current is not None and task.priority > self.current.priority:
            self._next_switch = min(self._next_switch, self.step + 1)

    def _fire_due(self) -> None:
        timers = self._timers
        while timers and (
            timers[0][0] <= self.now or timers[0][3] != timers[0][2].ticket or not timers[0][2].waits_for
        ):
            _, _, task, ticket = heapq.heappop(timers)
            if ticket == task.ticket and task.waits_for is not None:
                task.timed_out = True
                self._make_ready(task)

    def _pick(self) -> Task:
        """Who goes on, when the current one does not."""
        self._fire_due()
        while not self._ready:
            if not self._timers:
                self.finding = Finding("deadlock", self._stacks())
                self.note("FOUND", "deadlock")
                self.over = True
                raise SimulationOver
            if not self._asked:
                self._asked = True
                if self.world is not None:
                    sys.settrace(None)  # what it calls is no part of the run
                    self.world.check_idle()  # what it finds ends the run here
                    if self._lines:
                        sys.settrace(self._on_call)
            self.now = max(self.now, self._timers[0][0])
            self._fire_due()
        self._asked = False
        return self.strategy.take(self._ready)

    def _pass_on(self, task: Task) -> None:
        self.current = task
        task.gate.release()

    def _hand_over(self, me: Task, task: Task) -> None:
        self.switches += 1
        self.digest = (self.digest * 1_000_003 + self.step * 31 + task.index) & 0xFFFFFFFFFFFFFFFF
        self.current = task
        task.gate.release()
        me.gate.acquire()
        if self.over:
            raise SimulationOver

    def pending_timers(self) -> list[str]:
        """Who waits for a time."""
        return [task.name for _, _, task, ticket in self._timers if ticket == task.ticket and task.waits_for]

    def wakes_at(self, task: Task) -> float | None:
        """The time that this thread waits for, if it waits for one."""
        return next((at for at, _, one, ticket in self._timers if one is task and ticket == task.ticket), None)

    def alive(self) -> list[Task]:
        """Threads that have not ended."""
        return [task for task in self.tasks if not task.finished]

    def _stacks(self) -> str:
        frames = sys._current_frames()
        lines = ["nobody can go on"]
        for task in self.alive():
            held = ", ".join(map(str, task.held)) or "nothing"
            lines.append(f"-- {task.name} waits for {task.waits_for}, holds {held}")
            frame = frames.get(task.real_ident or 0)
            shown = [entry for entry in traceback.extract_stack(frame) if not entry.filename.endswith(_OWN)]
            lines += [
                f"   {entry.filename.rpartition('/')[2]}:{entry.lineno} {entry.name}: {entry.line}" for entry in shown
            ]
        return "\n".join(lines)


_OWN = ("scheduler.py", "primitives.py", "threading.py")

#: The run that is under way in this process. There is one at a time.
_active: Scheduler | None = None


def active() -> Scheduler:
    """The run that is under way."""
    assert _active is not None, "a simulated primitive is used outside of a run"
    return _active


def activate(scheduler: Scheduler | None) -> None:
    """Make it the run that is under way."""
    global _active
    assert scheduler is None or _active is None or _active.over, "two runs at once"
    _active = scheduler
