"""How long a test waits for what has to come.

Every wait of a test ends when what is awaited is there, so that patience costs nothing on a machine
that has nothing else to do; it is long enough for one that is busy with other things.
"""

PATIENCE_S = 180.0
