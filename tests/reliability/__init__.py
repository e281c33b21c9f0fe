"""Four commands that try tave from outside: ``python -m tests.reliability.kill``, ``.fuzz``, ``.disk``, ``.together``.

Each tries a list of mishaps that its seed fixes, prints a table and writes it as Markdown. ``docs/reliability.md`` has
the tables.
"""
