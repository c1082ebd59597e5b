"""Runtime of the OCF agents: what every agent gets for nothing.

Start-up time counts (a monitor runs every few seconds for years), so this package and all that a monitor imports use
built-in modules only: `posix` instead of `os`, `_socket` instead of `socket`, no `enum`, `re`, `typing`, `json`,
`subprocess`. The constant TYPE_CHECKING is spelled out for the same reason. tests/agents/test_start_up.py watches it.
"""
