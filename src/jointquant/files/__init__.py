"""Files that survive a kill, and output that appears only when it is complete."""
