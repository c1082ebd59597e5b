"""A disk with a volatile write cache, served over NBD, whose faults and power cuts are ordered by the laboratory."""
