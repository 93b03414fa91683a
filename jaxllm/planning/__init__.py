"""What a run would cost, told by the compiler before a pod is rented."""
