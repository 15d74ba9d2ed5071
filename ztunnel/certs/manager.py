"""The secret manager (Istio's term): keeps a valid certificate for each identity of the node.

`Rotations` decides what to do; the tasks here do it. Each identity has one task, named ``certificate
spiffe://...``, so the tree of tasks shows its state. The task waits until a fetch is due, then for one of the
eight places for fetches, fetches, and publishes the result. If a task fails, only its identity is affected.

Changes are published as the messages of `ztunnel.messages`: CertificateIssued, CertificateFailed (only while
there is no valid certificate), CertificateForgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple, TypeAlias

import trio

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.certs.authority import CertificateAuthority
from ztunnel.certs.certificate_errors import CaError, ForgottenIdentityError
from ztunnel.certs.rotation import Priority, Renewal, Rotation, Rotations
from ztunnel.messages import CertificateFailed, CertificateForgotten, CertificateIssued
from ztunnel.model.certificate import Certificate
from ztunnel.model.identity import Identity
from ztunnel.observe.logging import get_logger

log = get_logger("identity::manager")

Change: TypeAlias = CertificateIssued | CertificateFailed | CertificateForgotten


class Expiry(NamedTuple):
    """When an identity's certificate expires, for metrics and warnings. Times are epoch seconds.

    renewal_failing: why it was not renewed at its half-life, None if it was or is not due.
    """

    identity: Identity
    not_after: float
    renewal_failing: str | None


@dataclass(slots=True, eq=False)
class _Task:
    """What an identity's task shares with its callers."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    nudge: trio.Event = field(default_factory=trio.Event)
    turn: bool = False
    # Set and then replaced whenever an attempt ends or the identity is forgotten.
    settled: trio.Event = field(default_factory=trio.Event)


class SecretManager:
    """Fetches, renews and forgets certificates. It works only while `run` runs.

    clock: returns epoch seconds. random: returns numbers in [0, 1). publish: gets each change; it must not
        block.
    """

    def __init__(
        self,
        authority: CertificateAuthority,
        *,
        clock: Callable[[], float],
        random: Callable[[], float],
        publish: Callable[[Change], None],
        bounds: ControlBounds = DEFAULTS.control,
    ) -> None:
        self._authority = authority
        self._clock = clock
        self._random = random
        self._publish = publish
        self._bounds = bounds
        self._rotations = Rotations(bounds)
        self._tasks: dict[Identity, _Task] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the tasks of all identities until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()  # noqa: TID251  # until cancelled: tasks come and go with identities
        finally:
            self._nursery = None
            for task in self._tasks.values():
                task.settled.set()
            self._tasks.clear()

    def want(
        self, identity: Identity, priority: Priority = Priority.REAL_TIME
    ) -> CertificateIssued | CertificateFailed | None:
        """Get a certificate for ``identity``, and renew it until `forget`.

        Returns what is known already: the certificate in force, or why there is none now (a request by a
        connection makes the next attempt earlier). Returns None while the first attempt is under way; its
        result will be published.
        """
        nursery = self._nursery
        if nursery is None:
            raise RuntimeError("the secret manager does not run")
        now = self._clock()
        if self._rotations.want(identity, priority, now):
            task = self._tasks[identity] = _Task()
            nursery.start_soon(self._rotate, identity, task, name=f"certificate {identity}")
        else:
            self._tasks[identity].nudge.set()  # its next attempt may be earlier now
        self._hand_out_turns()
        rotation = self._rotations.get(identity)
        answer = rotation.answer(now) if rotation is not None else None
        match answer:
            case Certificate():
                return CertificateIssued(answer)
            case CaError():
                return CertificateFailed(identity, str(answer))
        return None

    async def fetch(self, identity: Identity, priority: Priority = Priority.REAL_TIME) -> Certificate:
        """Like `want`, but wait for the end of the first attempt, however long it takes.

        Returns the certificate.

        Raises CaError: why there is no certificate, or that the identity was forgotten meanwhile.
        """
        await trio.lowlevel.checkpoint()
        self.want(identity, priority)
        while True:
            rotation, task = self._rotations.get(identity), self._tasks.get(identity)
            if rotation is None or task is None:
                raise ForgottenIdentityError
            answer = rotation.answer(self._clock())
            if isinstance(answer, Certificate):
                return answer
            if answer is not None:
                raise answer
            await task.settled.wait()

    def forget(self, identity: Identity) -> None:
        """The last workload with this identity has left the node: drop its certificate and cancel its fetch.

        All who wait get an error.
        """
        if self._rotations.forget(identity):
            task = self._tasks.pop(identity)
            task.scope.cancel()
            task.settled.set()
            self._publish(CertificateForgotten(identity))
            self._hand_out_turns()

    def current(self, identity: Identity) -> Certificate | None:
        """Returns the certificate in force, None if there is none. Starts no fetch."""
        rotation = self._rotations.get(identity)
        return rotation.valid(self._clock()) if rotation is not None else None

    def rotations(self) -> list[Rotation]:
        """Returns all identities in the order of their URIs, for dumps. Do not change them."""
        return self._rotations.all()

    def expiries(self) -> list[Expiry]:
        """Returns when each certificate ends, for a gauge and for warnings."""
        return [
            Expiry(
                rotation.identity,
                rotation.certificate.not_after,
                str(rotation.error) if rotation.error is not None else None,
            )
            for rotation in self._rotations.all()
            if rotation.certificate is not None
        ]

    async def _rotate(self, identity: Identity, task: _Task) -> None:
        """The task of one identity."""
        with task.scope:
            while True:
                await self._wait_for_turn(identity, task)
                try:
                    certificate = await self._issue(identity)
                    self._rotations.issued(identity, certificate, self._clock())
                except CaError as error:
                    self._failed(identity, error)
                else:
                    log.debug("certificate issued", identity=identity, until=_text(certificate.not_after))
                    self._publish(CertificateIssued(certificate))
                settled, task.settled = task.settled, trio.Event()
                settled.set()
                self._hand_out_turns()

    async def _wait_for_turn(self, identity: Identity, task: _Task) -> None:
        while not task.turn:
            delay = self._rotations.due(identity, self._clock())
            if delay > 0:
                # Sleeping uses Trio's clock, certificates use the wall clock, which may be set at any time.
                with trio.move_on_after(min(delay, self._bounds.ca_sleep)):
                    await task.nudge.wait()
            else:
                self._hand_out_turns()
                await task.nudge.wait()
            task.nudge = trio.Event()
        task.turn = False

    def _hand_out_turns(self) -> None:
        for identity in self._rotations.start(self._clock()):
            task = self._tasks[identity]
            task.turn = True
            task.nudge.set()

    async def _issue(self, identity: Identity) -> Certificate:
        try:
            return await self._authority.issue(identity)
        except CaError:
            raise
        except Exception as error:
            # A bug in the rotation of one identity must not end the rotation of the others.
            log.error("fetching a certificate failed unexpectedly", identity=identity, error=repr(error))
            raise CaError(f"internal error: {error!r}") from error

    def _failed(self, identity: Identity, error: CaError) -> None:
        now = self._clock()
        renewal: Renewal = self._rotations.failed(identity, error, now, self._random())
        retry = f"{max(0.0, renewal.next_attempt - now):.1f}s"
        if renewal.valid_until is None:
            log.warn(
                f"certificate fetch failed ({error}), retrying in {retry}", identity=identity, code=error.code
            )
            self._publish(CertificateFailed(identity, str(error)))
            return
        until = _text(renewal.valid_until)
        log.info(
            f"certificate renewal failed ({error}); retaining existing valid certificate until {until}",
            identity=identity,
        )
        if renewal.overdue:
            left = (renewal.valid_until - now) / 60
            log.warn(
                f"certificate expires in {left:.0f} minutes and cannot be renewed: {error}; new connections "
                "will fail from then on",
                identity=identity,
                code=error.code,
            )


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
