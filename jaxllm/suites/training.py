"""Train the runs of a suite with a launcher: what may begin begins, and what ends is reported."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from tqdm import tqdm

from jaxllm.errors import UserError
from jaxllm.suites.jobs import Job, jobs
from jaxllm.suites.launchers import Launcher, State
from jaxllm.suites.suite import Suite

MISSES = 6  # looks at which a job that was submitted may not be there yet


def train(
    suite: Suite, launcher: Launcher, at_once: int, stack: int, log: Callable[[str], None]
) -> list[str]:
    """Train what is not finished, in `at_once` jobs of up to `stack` runs of equal shapes each;
    return the names of the runs that failed or could not begin.

    A failure stops only its own branches. On Ctrl-C runs save and end; on an error those here.
    """
    training = _Training(suite, launcher, stack, log)
    try:
        while training.waiting or training.running:
            training.note_ends()
            training.note_orphans()
            training.begin(at_once)
            training.show()
            if training.waiting or training.running:
                time.sleep(launcher.poll_seconds)
    except BaseException as error:
        if launcher.here or isinstance(error, KeyboardInterrupt):
            training.stop()
        raise
    finally:
        training.bar.close()
    return training.failed


class _Training:
    """The operations of `train`; jobs that are `waiting` or `running` have unfinished runs."""

    def __init__(
        self, suite: Suite, launcher: Launcher, stack: int, log: Callable[[str], None]
    ) -> None:
        self._suite, self._launcher, self._log = suite, launcher, log
        suite.layout.logs.mkdir(parents=True, exist_ok=True)
        states = {one.name: suite.progress(one) for one in suite.members}
        self._shares = {name: state.share for name, state in states.items()}  # of steps, done
        self._due = {name for name, state in states.items() if not state.finished}
        planned = [job for job in jobs(suite.members, stack) if self._due & job.runs]
        # A suite command that was lost has left some.
        self.running = [job for job in planned if self._state(job) == "running"]
        self.waiting = [job for job in planned if job not in self.running]
        self.failed: list[str] = []  # names of runs
        self._seen, self._misses = set(self.running), Counter[Job]()
        for job in self.running:
            log(f"{job.name}: goes on")
        self.bar = tqdm(
            total=sum(one.flops for one in suite.members if one.name in self._due),
            unit="FLOP", unit_scale=True, disable=None,
            bar_format="{percentage:3.0f}%|{bar}| {elapsed}, {remaining} left  {postfix}",
        )  # fmt: skip

    def note_ends(self) -> None:
        for job in list(self.running):
            state = self._state(job)
            if state == "running":
                self._seen.add(job)
            elif state == "none" and self._may_appear(job):
                self._misses[job] += 1
            else:
                self.running.remove(job)
                self._report(job, state)

    def note_orphans(self) -> None:
        """Give up what is a branch of a run that failed."""
        for job in list(self.waiting):
            for one in job.members:
                if one.name in self._due and one.parent in self.failed:
                    self._due.remove(one.name)
                    self.failed.append(one.name)
                    self._log(f"{one.name}: not begun, as {one.parent} failed")
            if not self._due & job.runs:
                self.waiting.remove(job)

    def begin(self, at_once: int) -> None:
        """Submit the next jobs whose parents have trained; UserError if not even the first can."""
        for job in list(self.waiting):
            unfinished = {name for other in [*self.waiting, *self.running] for name in other.runs}
            if len(self.running) == at_once or job.parents & unfinished:
                continue
            self.waiting.remove(job)
            self.running.append(job)
            try:
                if self._state(job) != "running":  # by a suite command beside this one
                    name, flags = self._suite.job_name(job), self._suite.flags(job, self._due)
                    self._launcher.submit(name, flags, self._suite.log(job))
            except UserError as error:
                if not self._seen:
                    raise
                self._log(f"{job.name}: not submitted ({error})")
                self._misses[job] += 1
                if self._misses[job] < MISSES:
                    self.running.remove(job)
                    self.waiting.append(job)

    def show(self) -> None:
        """Update the bar; a stack's runs are at one step, and nobody rereads what has ended."""
        members = self._suite.members
        now = {job: self._suite.progress(job.members[-1]).share for job in self.running}
        for job, share in now.items():
            self._shares |= dict.fromkeys(job.runs, share)
        left = sum(one.flops * (1 - self._shares[one.name]) for one in members)
        self.bar.n = max(self.bar.n, self.bar.total - left)
        ended = sum(share == 1 for share in self._shares.values())
        at = ", ".join(f"{job.name} {share:.0%}" for job, share in now.items())
        self.bar.set_postfix_str(f"{ended} of {len(members)} runs; {at}")

    def stop(self) -> None:
        """Let jobs save and end; wait for those here."""
        for job in self.running:
            self._log(f"{job.name}: saves and ends")
            try:
                self._launcher.cancel(self._suite.job_name(job))
            except UserError as error:
                self._log(f"{job.name}: may go on ({error})")
        while self._launcher.here and any(self._state(job) == "running" for job in self.running):
            time.sleep(self._launcher.poll_seconds)

    def _state(self, job: Job) -> State:
        return self._launcher.state(self._suite.job_name(job))

    def _may_appear(self, job: Job) -> bool:
        """Whether a job that is not there is too new: a queue may show it late."""
        done = all(self._suite.progress(one).finished for one in job.members)
        return job not in self._seen and self._misses[job] < MISSES and not done

    def _report(self, job: Job, state: State) -> None:
        """Say how each run of a job has ended; a stack fails where one run of it has diverged."""
        for one in (one for one in job.members if one.name in self._due):
            progress = self._suite.progress(one)
            self._shares[one.name] = progress.share
            self._due.remove(one.name)
            if progress.finished and (state != "failed" or len(job.members) > 1):
                self._log(f"{one.name}: finished")
            else:
                self.failed.append(one.name)
                self._log(f"{one.name}: failed ({self._suite.last_words(job, one)})")
