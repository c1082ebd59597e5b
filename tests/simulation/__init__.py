"""Two mirrors in one process: the real protocol code over a simulated clock, network and disks, from one seed."""
