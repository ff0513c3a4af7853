"""How long, how much memory, how many operations, how sure: one harness each; and what this machine is."""
