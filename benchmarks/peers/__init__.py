"""The sides that benchmarks compare: each is a driver in a process and an environment of its own, behind one small protocol (`kit`)."""
