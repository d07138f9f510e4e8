"""The two figures that are compared most: crdt_spine over JetStream KV with three replicas, 256 operations in flight,
50 % and 5 % writes; prints the ratios, to a bucket as nats-py makes it and to one with direct gets.
`--system jetstream` runs the peer alone, `--sync-always` makes it durable."""

from crdt_spine.bench.command import bench

if __name__ == "__main__":
    bench.main(
        prog_name="benchmarks.peers",
        default_map={
            "names": ("spine", "jetstream", "jetstream-direct"),
            "rounds": 3,
            "shares": (50.0, 5.0),
            "depths": (256,),
        },
    )
