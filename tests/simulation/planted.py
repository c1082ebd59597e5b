"""Bugs that the simulation must find: each breaks one promise of the effects between volume and executor."""

from __future__ import annotations

from dataclasses import replace

from replication.protocol.effects import Effect, Persist
from replication.protocol.metadata import Superblock
from tests.simulation.node import Node, Variation


class AcknowledgedBeforeActivityLog(Variation):
    """The activity log is written after the data, the sends and the answers that it should protect."""

    def effects(self, node: Node, effects: list[Effect]) -> list[Effect]:
        late: list[Effect] = [
            effect for effect in effects if isinstance(effect, Persist) and effect.what == "activity-log"
        ]
        return [effect for effect in effects if effect not in late] + late if late else effects


class BitClearedOnSend(Variation):
    """The source of a resync believes a block to be equal as soon as it has sent it."""

    def block_sent(self, node: Node, offset: int, length: int) -> None:
        inside = node.inside
        assert inside is not None
        inside.bitmap.clear_range(offset, length, inside.size_bytes)


class GenerationNotDurable(Variation):
    """Flags and sizes of the superblock are stable at once, a new generation only after some later flush."""

    def persist(self, node: Node, what: str, writes: list[tuple[int, bytes]]) -> bool:
        if what != "superblock":
            return False
        offset, block = writes[0]
        stable, fresh = Superblock.decode(node.disk.content(offset, len(block))), Superblock.decode(block)
        old = replace(
            fresh,
            current_uuid=stable.current_uuid,
            bitmap_uuid=stable.bitmap_uuid,
            history0=stable.history0,
            history1=stable.history1,
        )
        node.disk.persist(what, [(offset, old.encode())])
        node.disk.write([(offset, block)])
        return True
