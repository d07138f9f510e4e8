"""crdt_spine beside JetStream KV, all standard workloads, three rounds: what `make bench` runs. `--help` says more."""

from crdt_spine.bench.command import bench

if __name__ == "__main__":
    bench.main(
        prog_name="benchmarks.run", default_map={"names": ("spine", "jetstream", "jetstream-direct"), "rounds": 3}
    )
