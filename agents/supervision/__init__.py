"""What supervising somebody else's program takes: how to start it, who belongs to it, is it well, how to end it."""
