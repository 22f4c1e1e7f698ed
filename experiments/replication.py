"""Seeds of the laptop size, by their number, where a figure has more than one.

The claims of most figures were written down after seeds 1 to 3 had run. Ten
others, with claims that were fixed before, say what three cannot:
`:laptop,seeds=10`.
"""

SEEDS = {3: (1, 2, 3), 10: tuple(range(101, 111))}
NUMBERS = tuple(SEEDS)  # values of the option `seeds`, its default first
