"""What the agent `Mirror` makes of the words of mirroradm: pure."""
