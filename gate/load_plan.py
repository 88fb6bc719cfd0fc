"""What LoadGen is asked for: a scenario of MLPerf Inference and its settings.

The scenarios (Reddi et al. 2020, "MLPerf Inference Benchmark", and the inference rules of MLCommons) are four ways in
which requests come: one after the other (SingleStream), several at once and again when all are answered (MultiStream),
at random times with a promise of latency (Server), and all at once (Offline).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from planish.errors import InputError, nearest
from planish.gate.limits import check_seconds

__all__ = ["SCENARIOS", "LoadPlan", "Scenario"]

Scenario = Literal["SingleStream", "MultiStream", "Server", "Offline"]
SCENARIOS: tuple[str, ...] = get_args(Scenario)


@dataclass(frozen=True)
class LoadPlan:
    """Settings of one run.

    Attributes:
        seconds: LoadGen's minimum duration; the official one is 60 s (600 s for Offline and Server before v4).
        target_qps: Server: how many requests a second arrive, on average, as a Poisson process.
        target_seconds: Server: 99 % of the answers, of decoders of the first tokens, come within it.
        target_token_seconds: Server with a decoder: 99 % of the answers take no more for each further token.
        samples_per_query: MultiStream: requests that come together.
        batch_size: most requests that share a forward pass, where so many wait.
        new_tokens: most tokens a decoder writes for a request.
        seed: of the order of the requests, and of the arrivals.
    """

    scenario: str
    seconds: float = 60.0
    target_qps: float | None = None
    target_seconds: float | None = None
    target_token_seconds: float | None = None
    samples_per_query: int = 8
    batch_size: int = 32
    new_tokens: int = 16
    seed: int = 0

    def check(self, *, decoder: bool) -> None:
        """Raises InputError for a setting that is missing, idle or impossible."""
        if self.scenario not in SCENARIOS:
            raise InputError("a scenario of MLPerf", repr(self.scenario), nearest(self.scenario, SCENARIOS))
        check_seconds(self.seconds)
        for name, least in (("samples_per_query", 1), ("batch_size", 1), ("new_tokens", 2), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
                raise InputError(f"{name} of at least {least}", repr(value), "leave it out for the default")
        targets = {"target_qps": True, "target_seconds": True, "target_token_seconds": decoder}
        for name, needed in targets.items():
            value = getattr(self, name)
            if value is not None and (self.scenario != "Server" or not needed):
                who = "the Server scenario" if needed else "a decoder in the Server scenario"
                raise InputError(f"{name} with {who} alone", f"{value} with {self.scenario}", f"leave {name} out")
            if self.scenario == "Server" and needed and not (value is not None and 0 < value < math.inf):
                raise InputError(f"{name} above 0 for the Server scenario", repr(value), TELL[name])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


TELL = {
    "target_qps": "give --target-qps; a run of SingleStream tells what one after the other brings",
    "target_seconds": "give --target-ms, the time within which 99 % are to be answered",
    "target_token_seconds": "give --target-token-ms, the time that each further token may take",
}
