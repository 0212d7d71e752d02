"""What a solver costs around its network, and what the network's calls alone cost: measured side by side.

    python -m epd.experiments.benchmarks                 # everything that is missing, a quarter of an hour on two cores
    python -m epd.experiments.benchmarks.gpu             # the set for one GPU, at most 8 minutes
    python -m epd.experiments.benchmarks.sharding        # from what size on sharding points pays
"""
