"""Agents share memories on three nodes; one is killed and comes back. What `make demo` runs; `--help` says more."""

from pathlib import Path

from crdt_spine.demo.command import main

if __name__ == "__main__":
    main(Path(__file__).with_name("agents_sample.jsonl"))
