"""What the benchmark tools share: the workload, the machine, the clock, the report."""
