"""What the benchmarks need of this one."""
