"""Where every array lives: the device mesh, and the one table of logical axis rules."""
