"""A deterministic simulator of replicas: one seed, one run.

It drives crdt_spine.core.replica.Replica, the code that a node runs, over a simulated disk and network in virtual
time. Everything that could differ between two runs (order, delay, loss, crashes, clocks, what agents do) comes from
one random number generator, so a seed replays a run event for event.

    world.py      virtual time, the event queue, the story
    network.py    links that lose, double, reorder, delay and part
    disk.py       journal and checkpoint: what survives a crash
    node.py       a node around a Replica: commit, flush, recovery, identity
    boundaries.py the points between two effects at which a node may die
    register.py   who holds which partition
    operator.py   an operator who lets nodes join and leave
    scenario.py   what kind of run a seed is
    repair.py     announcements, paged syncs, collection of tombstones
    agents.py     agents that write, time out and try again elsewhere
    speakers.py   agents that talk in threads
    faults.py     what goes wrong, and when
    history.py    every change ever made, and what it must add up to (the naive second specification)
    checkers/     what must hold, one thing a file
    rules.py      rules that can be taken away, to see that the checkers notice
    run.py        one run
"""
