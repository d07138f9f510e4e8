"""Load and what it costs: a workload, a driver that offers it, CPU by process, rounds, and a report."""
