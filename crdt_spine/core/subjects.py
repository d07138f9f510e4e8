"""The subjects of a cluster: who says what where (docs/ARCHITECTURE.md, "Messages")."""

from __future__ import annotations

from typing import Final

DISCOVERY_SUBJECT: Final = "spine.discover"


class Subjects:
    """The subjects of one cluster."""

    def __init__(self, cluster: str) -> None:
        self.prefix = f"spine.{cluster}"
        self.deltas = f"{self.prefix}.delta.*"
        self.all_vectors = f"{self.prefix}.vectors.*"
        self.lock = f"{self.prefix}.lock"
        self.fence = f"{self.prefix}.fence"

    def delta(self, partition: int) -> str:
        return f"{self.prefix}.delta.{partition}"

    def vectors(self, node: str) -> str:
        return f"{self.prefix}.vectors.{node}"

    def gossip(self, node: str) -> str:
        return f"{self.prefix}.gossip.{node}"

    def rpc(self, node: str) -> str:
        return f"{self.prefix}.node.{node}.rpc"

    def ack(self, node: str) -> str:
        return f"{self.prefix}.node.{node}.ack"

    def sync(self, node: str) -> str:
        return f"{self.prefix}.node.{node}.sync"

    def record(self, node: str) -> str:
        return f"{self.prefix}.node.{node}.record"

    def round(self, node: str) -> str:
        return f"{self.prefix}.node.{node}.round"

    def rounded(self, node: str) -> str:
        return f"{self.prefix}.node.{node}.rounded"

    def strays(self, node: str) -> str:
        return f"{self.prefix}.node.{node}.strays"

    def feed(self, node: str) -> str:
        return f"{self.prefix}.node.{node}.feed"

    def claim(self, node: str) -> str:
        return f"{self.prefix}.node.{node}.claim"
