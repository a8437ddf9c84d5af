"""State, optimizer, steps, stages and the loop."""
