"""The mirror between two nodes of the laboratory, without a cluster engine: links cut, daemons killed, disks hung."""
