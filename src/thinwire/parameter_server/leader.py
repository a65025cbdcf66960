"""The server of an asynchronous run, or the first of several: it controls and records the run.

One thread answers the workers. A helper thread evaluates and saves: meanwhile the parameters do not
change, pulls and pushes are deferred, and workers that wait are told so. The clock stops as soon as
all of them wait.

A server's state is its checkpoint. A server that was killed is restarted with `resume`; its workers
learn that they are unknown, and join again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from math import isfinite
from secrets import token_hex
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from thinwire import __version__
from thinwire.console import print_line, warn
from thinwire.cores import num_threads
from thinwire.errors import UserError
from thinwire.parameter_server.assignments import Assignments
from thinwire.parameter_server.finite import check_finite
from thinwire.parameter_server.followers import Followers
from thinwire.parameter_server.protocol import Push
from thinwire.parameter_server.resuming import slot_positions
from thinwire.parameter_server.server import Server
from thinwire.parameter_server.server_scale import at_one_worker, at_servers
from thinwire.parameter_server.serving_loop import SHORT_POLL_SECONDS, ServingLoop
from thinwire.parameter_server.session import Session
from thinwire.parameter_server.shard import Shard, Unusable
from thinwire.parameter_server.sharding import sliced_shard
from thinwire.parameter_server.staleness import Staleness, StalenessCounts
from thinwire.runs.run import Run
from thinwire.runs.signals import stop_on_signals
from thinwire.transport.messages import Connection, Listener


class Leader(ServingLoop):
    """A run, the server of its workers, and the loop over their messages.

    Args:
        run: the run, loaded already if it is resumed.
        listener: receives from workers and sends to them.
        followers: connections to the other servers, in the order of their shards.
        saved: the state that the run was resumed from; empty if it was not resumed.
    """

    def __init__(
        self,
        run: Run,
        listener: Listener,
        followers: Sequence[Connection] = (),
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        self.run, self.listener = run, listener
        config = self.config = run.config
        saved = saved or {}
        self.run_id = token_hex(8)
        self.num_shards = 1 + len(followers)
        self._updates = (
            config.run.workers / config.exchange.for_workers(config.run.workers).accumulate
        )
        run.load_optimizer_state(at_servers(run.optimizer_state(), config.optim, self._updates))
        self.settings = asdict(config)
        self.assignments = Assignments(
            config.run.workers, slot_positions(run, saved.get("batches"))
        )
        run.epochs = self.assignments.epochs
        self.shard = self._shard()
        self.server = Server(
            listener,
            self.shard,
            self,
            data=run.corpus.meta.fingerprint,
            version=__version__,
            timeout_seconds=config.exchange.timeout_seconds,
            warn=warn,
        )
        self.followers: Followers | None = None
        if followers:
            self.followers = Followers(followers, run, self.shard, self.run_id, self.settings, warn)
        self.dropped = self._num_steps = 0
        self._counted = False
        self._staleness, self._all_staleness = StalenessCounts(), StalenessCounts()
        self._before = {name: saved.get(name, 0) for name in self._account()}

    def _shard(self) -> Shard:
        run, config = self.run, self.config
        exchange = config.exchange.for_workers(config.run.workers)
        if self.num_shards > 1:
            return sliced_shard(run.tables, run.blocks, 0, self.num_shards, config.optim, exchange)
        return Shard(run.updater, exchange)

    # The loop

    def serve(self, *, resumed: bool = False, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until the budget is spent; then evaluate, save and record the end."""
        run = self.run
        run.wire = self._wire()
        with stop_on_signals(run), run.recording(resumed=resumed):
            try:
                with run.clock.paused():  # it runs from the first worker's first step on
                    self._begin(ready)
                self._loop()
            except Exception as error:
                why = str(error) if isinstance(error, UserError) else type(error).__name__
                self.server.stop(why, failed=True)
                self.await_goodbyes()
                if self.followers is not None:
                    self.followers.end(why, failed=True)
                raise
        if run.stop_asked:
            raise KeyboardInterrupt

    def _begin(self, ready: Callable[[], None]) -> None:
        """Wait for the other servers, and for the first step."""
        run = self.run
        if self.followers is not None:
            self.followers.wait_until_ready(lambda: run.stop_asked)
        self._steer()
        ready()
        while self.server.all_wait and not run.stop_asked and not run.over:
            self._turn_and_poll()

    def _loop(self) -> None:
        run = self.run
        while not run.stop_asked and not run.over:
            self._turn_and_poll()
            if self.followers is not None and self.followers.handover_due:
                self._with_pushes_held(self._save)
            # An interval of 0 means after every step, not after every message.
            if not self._counted:
                continue
            self._counted = False
            if run.report_due:
                self._report()
            if run.evaluation_due():
                self._with_pushes_held(self._evaluate)
            if run.save_due():
                self._with_pushes_held(self._save)
        self._end()

    def _turn_and_poll(self) -> None:
        self.turn()
        if self.followers is not None:
            self.followers.poll()

    def _end(self) -> None:
        run = self.run
        asked = run.stop_asked
        with run.clock.paused():
            why = "it was interrupted" if asked else self._why_over()
            if not self.server.stopped:
                self.server.stop(why)
            self.await_goodbyes()
            self._report()
            self.shard.flush()
            failures = self._last_actions(evaluate=not run.evaluated and not asked)
            self.linger()
            if self.followers is not None:
                self.followers.end(why)
        if failures:
            raise failures[0]
        run.stop_asked = asked
        run.wire = self._wire(self._all_staleness)
        run.end()

    def _why_over(self) -> str:
        run = self.run
        return "its budget is spent" if run.progress() >= 1.0 else f"there was {run.why_over}"

    def _last_actions(self, *, evaluate: bool) -> list[UserError]:
        """Evaluate and save; return the failures. Both are tried, even if one fails."""
        checkpoints = self.run.checkpoints
        actions: list[Callable[[], None]] = [self._evaluate_or_raise] if evaluate else []
        actions.append(lambda: self._save_or_raise(best=False))
        actions += [checkpoints.wait] if checkpoints is not None else []
        failures = []
        for action in actions:
            try:
                self._run_in_helper(action)
            except UserError as error:
                failures.append(error)
        return failures

    def close(self) -> None:
        """Close the listener and the connections."""
        self.listener.close()
        if self.followers is not None:
            self.followers.close()

    # Evaluating and saving

    def _with_pushes_held(self, action: Callable[[], None]) -> None:
        """Run `action` while pushes are deferred and all buffered pushes are applied.

        They are undone afterwards, so that evaluations and saves do not change the training.
        """
        self.server.hold()
        with ExitStack() as stack, self.shard.flushed():
            self._run_in_helper(action, lambda: stack.enter_context(self.run.clock.paused()))
        self.server.release()

    def _run_in_helper(
        self, action: Callable[[], None], all_wait: Callable[[], object] = object
    ) -> None:
        """Run `action` in a helper thread, and answer workers meanwhile.

        Args:
            action: evaluates or saves.
            all_wait: called once, as soon as no worker computes.
        """
        errors: list[BaseException] = []
        self.run.wire = self._wire()

        def help_out() -> None:
            # Of this thread: the workers stand still, so their cores are free.
            torch.set_num_threads(num_threads(self.config.run.threads))
            try:
                action()
            except BaseException as error:
                errors.append(error)

        helper = Thread(target=help_out, name="helper", daemon=True)
        helper.start()
        notified = False
        while helper.is_alive():
            if not notified and self.server.all_wait:
                notified = True
                all_wait()
            self.turn(SHORT_POLL_SECONDS)
        helper.join()
        if errors:
            raise errors[0]

    def _evaluate(self) -> None:
        _or_warn(self._evaluate_or_raise)

    def _evaluate_or_raise(self) -> None:
        run = self.run
        self._collect(optimizers=False)
        found = run.measure()
        if run.take_evaluation(found.ppl, found):
            self._save(best=True)

    def _save(self, *, best: bool = False) -> None:
        # What was saved is kept; the run goes on, and tries again.
        _or_warn(lambda: self._save_or_raise(best=best))

    def _save_or_raise(self, *, best: bool) -> None:
        self._collect(optimizers=True)
        self.run.save({}, self._reader_state(), best=best, optimizer=self._optimizer_of_one_worker)

    def _optimizer_of_one_worker(self) -> dict[str, Tensor]:
        return at_one_worker(self.run.optimizer_state(), self.config.optim, self._updates)

    def _collect(self, *, optimizers: bool) -> None:
        """Copy the other servers' rows into the run's model, if everything is finite."""
        if self.followers is not None:
            self.followers.collect(optimizers=optimizers)
        else:
            check_finite(self.shard.parameters, self.run.step)

    def _reader_state(self) -> dict[str, Any]:
        """Where each worker stands in the text, and, for another number of workers, the average."""
        data, N = self.config.data, self.config.run.workers
        epoch, step = self.assignments.middle()
        return {
            "epoch": epoch,
            "step": step,
            "streams": N * data.batch,
            "length": data.length,
            "workers": N,
            "epochs": self.assignments.epochs,
            "places": self.assignments.state(),
        }

    # The record

    def _report(self) -> None:
        self.run.wire = self._wire(self._staleness)
        self.run.report()
        self._staleness = StalenessCounts()

    def _wire(self, staleness: StalenessCounts | None = None) -> dict[str, Any]:
        account = self._account()
        wire: dict[str, Any] = {n: account[n] + before for n, before in self._before.items()}
        if staleness is not None:
            wire["staleness"] = staleness.summary()
        return wire

    def _account(self) -> dict[str, float]:
        """Bytes of all workers, and seconds that the average worker waited, so far.

        Bytes that the servers send are bytes that the workers receive, and vice versa.
        """
        wire = self.server.wire()
        num_bytes = round(wire.bytes_sent + wire.bytes_received)
        return {
            "bytes_sent": num_bytes,
            "bytes_received": num_bytes,
            # Every step pulls and pushes all parameters, in fp32.
            "bytes_dense": 2 * 4 * self.run.num_parameters * self._num_steps,
            "exchange_seconds": round(wire.waited_seconds / self.config.run.workers, 3),
            "dropped_pushes": self.dropped,
        }

    # What the server asks its controller

    def welcome(self, session: Session, before: Session | None) -> dict[str, Any] | None:
        """See `Controller`."""
        if before is None:
            session.slot = self.assignments.take()
        elif before is not session:
            session.slot = before.slot
            print_line(f"{session.name} has joined again.")
        return {
            "run": self.run_id,
            "shard": 0,
            "num_shards": self.num_shards,
            "slot": session.slot,
            "position": list(self.assignments.position(session.slot)),
            "settings": self.settings,
        }

    def on_leave(self, session: Session, why: str) -> None:
        """See `Controller`."""
        self.assignments.free(session.slot)
        if not self.server.stopped:
            print_line(f"{session.name} {why}.")

    def check_push(self, session: Session, push: Push) -> None:
        """See `Controller`."""
        report, data = push.report, self.config.data
        if report.num_targets > data.batch * data.length:
            raise ValueError(f"a step has no {report.num_targets} targets")
        self.assignments.check(session.slot, report.position)
        for what, number in (("loss", report.loss), ("gradient's norm", report.norm)):
            if not isfinite(number):
                raise Unusable(f"the {what} is {number}")
        self._steer()

    def push_refused(self, session: Session, why: Unusable) -> None:
        """See `Controller`."""
        self.dropped += 1
        if self.server.all_refused:
            run = self.run
            raise run.diverged(f"{why} at step {run.step + 1}, by {session.name}")

    def push_done(self, session: Session, push: Push, staleness: Staleness | None) -> None:
        """See `Controller`."""
        run = self.run
        self.assignments.move(session.slot, push.report.position)
        if staleness is None:
            self.dropped += 1
            return
        self._staleness.add(staleness)
        self._all_staleness.add(staleness)
        self._num_steps += 1
        self._counted = True
        run.advance(push.report.num_targets, self.assignments.epochs)
        run.observe(push.report.loss)
        self._steer()
        if run.progress() >= 1.0:
            self.server.stop("its budget is spent")

    def _steer(self) -> None:
        """Set the schedule's factor of the learning rates, which pushes carry to other servers."""
        run, progress = self.run, self.run.progress()
        run.set_rates(progress)
        self.shard.factor = run.schedule.factor(run.step, progress)


def _or_warn(action: Callable[[], None]) -> None:
    try:
        action()
    except UserError as error:
        warn(str(error))
