"""Memory, time and cost of a run, from the compiler, before a pod is rented."""
