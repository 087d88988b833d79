"""A ledger over modelled stages, and texts whose beginnings are alike."""

from __future__ import annotations

from edgepp.engine.ledger import Ledger
from edgepp.engine.request import Request
from edgepp.engine.request_status import RequestStatus


class Stages:
    """The positions that the stages hold, and an engine that only counts."""

    def __init__(self, budget: int | None, spare: int = 300) -> None:
        self.sent: dict[int, int] = {}
        self.ledger: Ledger[Request] = Ledger(budget, spare, shares=True)

    def begin(self) -> list[Request]:
        begun = []
        for request in self.ledger.admit():
            held = request.sent
            if request.source:
                assert self.sent[request.source] >= held
            elif held:
                assert self.sent[request.sequence] >= held
            assert held < len(request.ids)
            self.compute(request)
            request.status, request.source = RequestStatus.READY, 0
            begun.append(request)
        self.free()
        return begun

    def compute(self, request: Request) -> None:
        self.sent[request.sequence] = request.sent = len(request.ids)

    def make_room(self) -> None:
        while (request := self.ledger.over_share()) is not None:
            check_who_gives_way(request, self.ledger)
            self.ledger.preempt(request, end_turn=True)
        self.free()

    def reclaim(self) -> None:
        while (request := self.ledger.over_budget()) is not None:
            check_who_gives_way(request, self.ledger)
            self.ledger.preempt(request)
        self.free()

    def finish(self, request: Request, held: int, steps_in_ring: int = 0) -> None:
        request.sent, request.steps_in_ring = held, steps_in_ring
        self.ledger.finish(request)

    def free(self) -> None:
        for sequence in self.ledger.freed():
            assert sequence not in self.ledger.live
            del self.sent[sequence]

    @property
    def held(self) -> int:
        return sum(self.sent.values())


TEXTS = [[n % 7 for n in range(100)], [n % 5 for n in range(80)], [n % 7 for n in range(60)] + [9] * 30]


def check_who_gives_way(request: Request, ledger: Ledger[Request]) -> None:
    """The newest request of the owner who holds most, but never the request that was admitted first."""
    live = ledger.live.values()
    first = min(live, key=lambda one: one.turn)
    held = {one.owner: sum(len(other.ids) for other in live if other.owner == one.owner) for one in live}
    assert request is not first
    others = [one for one in live if one is not first]
    assert held[request.owner] == max(held[one.owner] for one in others)
    assert all(one.id <= request.id for one in others if one.owner == request.owner)
