"""The grammar of drbd.conf(5): grammar.py (text -> tree), resource_sections.py (tree -> resources), text.py (back)."""
