"""Which replica of a deployment gets a request: of two the one with fewer tokens to do, or the one that has its prefix
cached; none that was set aside while another one serves."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from batching.client import WorkerClient
from batching.link import WorkerLink
from batching.stats import WorkerStats
from server.affinity import Affinity
from server.replica_health import Ejection, Health, Window, slow_ones

LOOK_EVERY = 1.0  # seconds between looks at the replicas' paces
TYPICAL_TOKENS = 512  # of a request that another gateway has sent
BUSIER = 1.5  # times the tokens of the alternative, and
SLACK = 4096  # tokens on top: with more a replica is markedly busier, and a cached prefix not worth the wait

OnEjection = Callable[[Ejection], None]


@dataclass(slots=True, eq=False)
class Replica:
    """One engine of a deployment. `num_open` and `open_tokens` count this gateway's requests on it, and what they are
    expected to take, prompt and answer."""

    link: WorkerLink
    num_open: int = 0
    open_tokens: int = 0
    health: Health = field(default_factory=Health)
    _lost: WorkerClient | None = None  # the last one whose death was noted
    _latest: WorkerClient | None = None

    @property
    def client(self) -> WorkerClient | None:
        return self.link.client

    @property
    def is_ready(self) -> bool:
        """Whether its worker is there, and the engine behind it."""
        client = self.client
        return client is not None and client.stats.ready and not client.closed.is_set()

    @property
    def is_well(self) -> bool:
        return self.is_ready and not self.health.is_set_aside

    def notes_death(self, client: WorkerClient) -> bool:
        """Every request of a dead worker fails; that is one failure."""
        is_news, self._lost = client is not self._lost, client
        return is_news

    @property
    def stats(self) -> WorkerStats:
        """As last reported: while the worker is away, what it had counted stays known."""
        self._latest = self.client or self._latest
        return self._latest.stats if self._latest is not None else WorkerStats()

    @property
    def outstanding_tokens(self) -> int:
        """Of all gateways' requests on it, those of others being guessed."""
        stats = self.stats
        num_others = max(0, stats.running + stats.waiting - self.num_open)
        return self.open_tokens + num_others * TYPICAL_TOKENS


@dataclass(slots=True)
class _Seen:
    """A replica's counters at the last look."""

    steps: int = 0
    seconds: float = 0.0
    work: int = 0


class Balancer:
    """Of one deployment, in one gateway."""

    def __init__(self, replicas: Sequence[Replica], on_ejection: OnEjection = lambda reason: None) -> None:
        self.on_ejection = on_ejection
        self.affinity = Affinity()
        self._replicas = replicas
        self._seen = [_Seen() for _ in replicas]
        self._looked_at = 0.0

    def pick(self, now: float, keys: Sequence[bytes] = (), without: Replica | None = None) -> Replica | None:
        """None while no other than `without` serves. `keys`: the prompt's, from `affinity.prefix_keys`."""
        self._look(now)
        ready = [replica for replica in self._replicas if replica.is_ready and replica is not without]
        if not ready:
            return None
        picked = self._to_probe(ready, now) or self._best(ready, keys)
        self.affinity.note(keys, self._replicas.index(picked))
        return picked

    def _to_probe(self, ready: Sequence[Replica], now: float) -> Replica | None:
        probed = next((replica for replica in ready if replica.health.wants_probe(now)), None)
        if probed is not None:
            probed.health.probe()
        return probed

    def _best(self, ready: Sequence[Replica], keys: Sequence[bytes]) -> Replica:
        well = [replica for replica in ready if not replica.health.is_set_aside] or ready
        lighter = min(_two_of(well), key=lambda replica: replica.outstanding_tokens)
        owner, num_cached = self.affinity.find(keys)
        if owner is None or (cached := self._replicas[owner]) not in well:
            return lighter
        bearable = BUSIER * lighter.outstanding_tokens + num_cached + SLACK
        return cached if cached.outstanding_tokens <= bearable else lighter

    def has_other(self, replica: Replica) -> bool:
        return any(other.is_ready for other in self._replicas if other is not replica)

    # --- who is set aside

    def failed(self, replica: Replica, client: WorkerClient, now: float) -> None:
        """A request, on this client of it."""
        if client.closed.is_set() and not replica.notes_death(client):
            return
        if replica.health.failed():
            self._set_aside(replica, Ejection.FAILING, now)

    def _look(self, now: float) -> None:
        if now - self._looked_at < LOOK_EVERY or len(self._replicas) < 2:
            return
        self._looked_at = now
        windows = [self._window(index) for index in range(len(self._replicas))]
        for replica, window, is_slow in zip(self._replicas, windows, slow_ones(windows), strict=True):
            if window is not None and replica.health.was_slow(is_slow):
                self._set_aside(replica, Ejection.SLOW, now)

    def _window(self, index: int) -> Window | None:
        """What it has done since the last look; None for nothing, or a new worker that counts anew."""
        stats, seen = self._replicas[index].stats, self._seen[index]
        latest = _Seen(stats.steps, stats.step_seconds, stats.batch_size_sum + stats.prefill_tokens)
        self._seen[index] = latest
        if latest.steps <= seen.steps:
            return None
        return Window(latest.steps - seen.steps, latest.seconds - seen.seconds, latest.work - seen.work)

    def _set_aside(self, replica: Replica, reason: Ejection, now: float) -> None:
        """Never the last one."""
        others = (other for other in self._replicas if other is not replica)
        if any(other.is_ready and not other.health.is_set_aside for other in others):
            replica.health.set_aside(now)
            self.on_ejection(reason)


def _two_of(replicas: Sequence[Replica]) -> Sequence[Replica]:
    """Two by chance, so that gateways which know the same don't all send to one."""
    if len(replicas) <= 2:
        return replicas
    first, second = sorted(random.sample(range(len(replicas)), 2))
    return replicas[first], replicas[second]
